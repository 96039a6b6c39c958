-- Begins a chunk.
--
-- KEYS  1 state   2 items
-- ARGV  1 number of the chunk   2 now, in microseconds of the epoch   3 channel   4 name of the batch
--       5.. the places of the items
-- Returns what is to be done, the state and the items. 0: nothing, it is gone or was cancelled; 1: it was done, and
-- is only to be taken off its queue; 2: all of it.

local state = redis.call('HMGET', KEYS[1], 'created', 'started', 'ended', 'chunk:' .. ARGV[1])
if not state[1] then
  return {0}
end
local what = state[4] and 1 or state[3] and 0 or 2
if what == 2 and not state[2] then
  redis.call('HSET', KEYS[1], 'started', ARGV[2])
  redis.call('PUBLISH', ARGV[3], ARGV[4])
end
return {what, redis.call('HGETALL', KEYS[1]), redis.call('HMGET', KEYS[2], unpack(ARGV, 5))}
