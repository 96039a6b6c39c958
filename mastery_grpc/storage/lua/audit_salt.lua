-- Gives a student the salt of his pseudonym in the audit log.
--
-- KEYS  1 salt   2 current mastery   3 mark of an erasure
-- ARGV  1 a fresh salt   2 seconds to live   3 1 if one of whom nothing is held yet gets it too, unless erased
-- Returns the salt that he has, nil for none.

local salt = redis.call('GET', KEYS[1])
if salt then
  return salt
end
local is_known = redis.call('EXISTS', KEYS[2]) == 1
if is_known or (ARGV[3] == '1' and redis.call('EXISTS', KEYS[3]) == 0) then
  redis.call('SET', KEYS[1], ARGV[1], 'EX', ARGV[2])
  return ARGV[1]
end
return false
