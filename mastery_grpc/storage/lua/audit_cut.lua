-- Forgets the oldest entries of the audit log of a school, and leaves an anchor in their place.
--
-- KEYS  1 log   2 anchor
-- ARGV  1 anchor that is expected, empty for none   2 new anchor   3 place of the first entry that stays
-- Returns 1, or 0 if the anchor is another one.

if (redis.call('GET', KEYS[2]) or '') ~= ARGV[1] then
  return 0
end
redis.call('SET', KEYS[2], ARGV[2])
redis.call('XTRIM', KEYS[1], 'MINID', '=', ARGV[3] .. '-0')
return 1
