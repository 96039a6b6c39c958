-- Records what became of one piece of advice, once per request.
--
-- KEYS  1 feedback   2 path   3 current mastery   4 mark of an erasure
-- ARGV  1 field of the feedback   2 feedback (JSON)   3 field of the request, empty for none
--       4 now, microseconds since 1970   5 requests before this time may be forgotten, in the same unit
--       6 how many requests to remember   7 seconds to live of the feedback
-- Returns the time that the request was first recorded at, in microseconds; nil if the student is not there, or
-- was erased since.

local mark = redis.call('GET', KEYS[4])
local erase_millis = mark and string.match(mark, '"erase_millis":(%d+)') or 0
if redis.call('EXISTS', KEYS[3]) == 0 or tonumber(ARGV[4]) <= erase_millis * 1000 then
  return false
end
local time = ARGV[4]
local first = ARGV[3] ~= '' and redis.call('HGET', KEYS[1], ARGV[3])
if first then
  time = first
else
  if ARGV[3] ~= '' then
    local fields = redis.call('HGETALL', KEYS[1])
    local count, oldest = 0, nil
    for i = 1, #fields, 2 do
      if string.sub(fields[i], 1, 8) == 'request:' then
        if tonumber(fields[i + 1]) < tonumber(ARGV[5]) then
          redis.call('HDEL', KEYS[1], fields[i])
        else
          count = count + 1
          if not oldest or tonumber(fields[i + 1]) < tonumber(fields[oldest + 1]) then
            oldest = i
          end
        end
      end
    end
    if count >= tonumber(ARGV[6]) then
      redis.call('HDEL', KEYS[1], fields[oldest])
    end
    redis.call('HSET', KEYS[1], ARGV[3], time)
  end
  redis.call('HSET', KEYS[1], ARGV[1], ARGV[2])
  redis.call('HINCRBY', KEYS[1], 'revision', 1)
  redis.call('UNLINK', KEYS[2])
end
-- Of a repeat too: whoever waits for replicas waits for a write.
redis.call('EXPIRE', KEYS[1], ARGV[7])
return time
