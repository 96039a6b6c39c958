-- Queues chunks of a batch.
--
-- KEYS  1 queue
-- ARGV  1 group of the workers   2 seconds to live   3 channel   4 school   5 batch   6.. the numbers of the chunks
-- Repeating is safe: whoever meets a chunk that is done leaves it alone.

for i = 6, #ARGV do
  redis.call('XADD', KEYS[1], '*', 'school', ARGV[4], 'batch', ARGV[5], 'chunk', ARGV[i])
end
-- Refused where the group is there already.
redis.pcall('XGROUP', 'CREATE', KEYS[1], ARGV[1], '0')
redis.call('EXPIRE', KEYS[1], ARGV[2])
redis.call('PUBLISH', ARGV[3], '')
return 1
