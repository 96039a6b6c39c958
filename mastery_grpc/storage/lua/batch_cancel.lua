-- Ends a batch, unless it has ended.
--
-- KEYS  1 state
-- ARGV  1 now, in microseconds of the epoch   2 channel   3 name of the batch
-- Returns the state as it is then; nothing if there is no such batch.

local state = redis.call('HMGET', KEYS[1], 'created', 'ended')
if state[1] and not state[2] then
  redis.call('HSET', KEYS[1], 'ended', ARGV[1], 'cancelled', '1')
  redis.call('PUBLISH', ARGV[2], ARGV[3])
end
return redis.call('HGETALL', KEYS[1])
