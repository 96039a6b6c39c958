-- Puts back everything under a student's own keys, if nothing is there. All of it or nothing.
--
-- KEYS  1 current mastery   2 mark of an erasure   3 event log   4 days with a snapshot   5 feedback
--       then the key of each further value
-- ARGV  1 the mark that is expected, empty for none   2 current mastery
--       3 number of log entries   4 number of days   5 number of fields of feedback
--       6-8 when log, days and feedback expire
--       then id and event of each log entry; time of writing (seconds) and date of each day; each field of feedback and
--       its value; each further value and when it expires
-- Times of expiry are in milliseconds since 1970, 0 for never. Returns 1 if it was put back, else 0.

if (redis.call('GET', KEYS[2]) or '') ~= ARGV[1] then
  return 0
end
if redis.call('EXISTS', KEYS[1], KEYS[3], KEYS[4], KEYS[5]) > 0 then
  return 0
end

local function expire(key, time)
  if time ~= '0' then
    redis.call('PEXPIREAT', key, time)
  end
end

redis.call('SET', KEYS[1], ARGV[2])
local arg = 9
for _ = 1, ARGV[3] do
  redis.call('XADD', KEYS[3], ARGV[arg], 'event', ARGV[arg + 1])
  arg = arg + 2
end
for _ = 1, ARGV[4] do
  redis.call('ZADD', KEYS[4], ARGV[arg], ARGV[arg + 1])
  arg = arg + 2
end
for _ = 1, ARGV[5] do
  redis.call('HSET', KEYS[5], ARGV[arg], ARGV[arg + 1])
  arg = arg + 2
end
for i = 0, 2 do
  expire(KEYS[3 + i], ARGV[6 + i])
end
for i = 6, #KEYS do
  redis.call('SET', KEYS[i], ARGV[arg])
  expire(KEYS[i], ARGV[arg + 1])
  arg = arg + 2
end
return 1
