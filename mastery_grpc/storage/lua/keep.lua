-- Keeps what was made of a student's state, as long as he has that state still.
--
-- KEYS  1 current mastery   2 where to keep it
-- ARGV  1 the revision that it was made of, as version.rebuilds   2 value   3 seconds to live
-- Returns 1 if it is kept; 0 if the student has moved on, or was erased.

local stored = redis.call('GET', KEYS[1])
if not stored then
  return 0
end
local version = string.match(stored, '^{"version":(%d+)')
local rebuilds = string.match(stored, '^{"version":%d+,"rebuilds":(%d+)') or '0'
if not version or version .. '.' .. rebuilds ~= ARGV[1] then
  return 0
end
redis.call('SET', KEYS[2], ARGV[2], 'EX', ARGV[3])
return 1
