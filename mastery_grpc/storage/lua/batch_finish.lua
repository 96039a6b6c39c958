-- Writes the results of a chunk, unless somebody else has: all of them or none.
--
-- KEYS  1 state   2 results   3 scores
-- ARGV  1 number of the chunk   2 now, in microseconds of the epoch   3 channel   4 name of the batch
--       then place, result (JSON) and score of each item; an empty score for none
-- Returns 1 if the batch has ended.

local state = redis.call('HMGET', KEYS[1], 'expires', 'chunks', 'ended')
if not state[1] then  -- it was dropped meanwhile
  return 1
end
if redis.call('HSETNX', KEYS[1], 'chunk:' .. ARGV[1], '1') == 0 then
  return state[3] and 1 or 0
end
local succeeded, failed = 0, 0
for i = 5, #ARGV, 3 do
  redis.call('HSET', KEYS[2], ARGV[i], ARGV[i + 1])
  if ARGV[i + 2] ~= '' then
    redis.call('ZADD', KEYS[3], ARGV[i + 2], ARGV[i])
  end
  if string.sub(ARGV[i + 1], 1, 10) == '{"ok":true' then
    succeeded = succeeded + 1
  else
    failed = failed + 1
  end
end
redis.call('HINCRBY', KEYS[1], 'succeeded', succeeded)
redis.call('HINCRBY', KEYS[1], 'failed', failed)
local ends = math.floor(tonumber(state[1]) / 1000)
redis.call('PEXPIREAT', KEYS[2], ends)
redis.call('PEXPIREAT', KEYS[3], ends)
local done = redis.call('HINCRBY', KEYS[1], 'done', 1)
if done == tonumber(state[2]) and not state[3] then
  redis.call('HSET', KEYS[1], 'ended', ARGV[2])
  state[3] = ARGV[2]
end
redis.call('PUBLISH', ARGV[3], ARGV[4])
return state[3] and 1 or 0
