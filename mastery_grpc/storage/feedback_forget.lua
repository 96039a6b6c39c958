-- Forgets parts of a student's feedback, unless they were written anew meanwhile.
--
-- KEYS  1 feedback
-- ARGV  pairs of a field and the value that it must still have
-- Returns how many were forgotten.

local count = 0
for i = 1, #ARGV, 2 do
  if redis.call('HGET', KEYS[1], ARGV[i]) == ARGV[i + 1] then
    count = count + redis.call('HDEL', KEYS[1], ARGV[i])
  end
end
return count
