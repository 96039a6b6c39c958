-- Writes one change of one cohort: all of it or nothing.
--
-- KEYS  1 profile   2 members   3 requests
-- ARGV  1 etag that the change was computed from, empty for none   2 new etag
--       3 new profile (JSON), empty to delete the cohort
--       4 id of the request, empty for none   5 what the request is
--       6 now, microseconds since 1970   7 requests before this time may be forgotten, in the same unit
--       8 how many requests to remember   9 seconds to live of the requests
--       10 number of members to remove, then those, then those to add
-- Returns 1 if the change is written, by this call or an earlier one with the same new etag; 0 if the cohort has
-- changed meanwhile, or the request was carried out already.

local stored = redis.call('GET', KEYS[1])
local etag = stored and string.match(stored, '^{"etag":"([^"]*)"') or ''
if stored and etag == ARGV[2] then
  return 1
end
if etag ~= ARGV[1] or (ARGV[4] ~= '' and redis.call('HEXISTS', KEYS[3], ARGV[4]) == 1) then
  return 0
end

-- In portions: Lua cannot hand over all of them at once.
local function in_portions(command, first, last)
  for start = first, last, 1000 do
    redis.call(command, KEYS[2], unpack(ARGV, start, math.min(start + 999, last)))
  end
end

if ARGV[3] == '' then
  redis.call('UNLINK', KEYS[1], KEYS[2])
else
  redis.call('SET', KEYS[1], ARGV[3])
  local kept = 10 + tonumber(ARGV[10])
  in_portions('SREM', 11, kept)
  in_portions('SADD', kept + 1, #ARGV)
end

if ARGV[4] ~= '' then
  local fields = redis.call('HGETALL', KEYS[3])
  local count, oldest, oldest_time = 0, nil, nil
  for i = 1, #fields, 2 do
    local time = tonumber(string.match(fields[i + 1], '^(%d+) '))
    if time < tonumber(ARGV[7]) then
      redis.call('HDEL', KEYS[3], fields[i])
    else
      count = count + 1
      if not oldest or time < oldest_time then
        oldest, oldest_time = fields[i], time
      end
    end
  end
  if count >= tonumber(ARGV[8]) then
    redis.call('HDEL', KEYS[3], oldest)
  end
  redis.call('HSET', KEYS[3], ARGV[4], ARGV[6] .. ' ' .. ARGV[5])
  redis.call('EXPIRE', KEYS[3], ARGV[9])
end
return 1
