-- Notes where a student stands in a batch.
--
-- KEYS  1 his places in batches   2 the mark that he was erased
-- ARGV  1 now   2 when the batch ends, both in milliseconds of the epoch   3.. his places
-- Returns the mark.

redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', ARGV[1])
for i = 3, #ARGV do
  redis.call('ZADD', KEYS[1], ARGV[2], ARGV[i])
end
redis.call('PEXPIREAT', KEYS[1], redis.call('ZRANGE', KEYS[1], -1, -1, 'WITHSCORES')[2])
return redis.call('GET', KEYS[2])
