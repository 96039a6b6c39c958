-- Stores a batch, unless it is there already.
--
-- KEYS  1 state   2 items
-- ARGV  1 when all of it ends, in milliseconds of the epoch   2 number of fields of the state
--       then the fields of the state and their values, then place and item (JSON) of each item
-- Returns the state as it is then.

if redis.call('EXISTS', KEYS[1]) == 0 then
  local fields = 2 * tonumber(ARGV[2])
  for i = 3, #ARGV, 2 do
    redis.call('HSET', i < 3 + fields and KEYS[1] or KEYS[2], ARGV[i], ARGV[i + 1])
  end
  redis.call('PEXPIREAT', KEYS[1], ARGV[1])
  redis.call('PEXPIREAT', KEYS[2], ARGV[1])
end
return redis.call('HGETALL', KEYS[1])
