-- Counts a batch among those that are open, unless its owner has as many as he may.
--
-- KEYS  1 all open batches   2 those of its owner
-- ARGV  1 its name   2 when it was submitted   3 how many the owner may have, 0 for any number
--       4 seconds to live
-- Returns 1 if it counts, now or already; 0 if it may not.

local most = tonumber(ARGV[3])
if not redis.call('ZSCORE', KEYS[2], ARGV[1]) then
  if most > 0 and redis.call('ZCARD', KEYS[2]) >= most then
    return 0
  end
  redis.call('ZADD', KEYS[2], ARGV[2], ARGV[1])
  redis.call('ZADD', KEYS[1], ARGV[2], ARGV[1])
  redis.call('EXPIRE', KEYS[1], ARGV[4])
  redis.call('EXPIRE', KEYS[2], ARGV[4])
end
return 1
