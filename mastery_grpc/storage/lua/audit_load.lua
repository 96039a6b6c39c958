-- Reads a part of the audit log of a school, with its two ends as they are at the same moment.
--
-- KEYS  1 log   2 head   3 anchor
-- ARGV  1 place after which to begin   2 how many entries
-- Returns the head and the anchor, empty for none, and the entries.

local entries = redis.call('XRANGE', KEYS[1], '(' .. ARGV[1] .. '-0', '+', 'COUNT', ARGV[2])
return {redis.call('GET', KEYS[2]) or '', redis.call('GET', KEYS[3]) or '', entries}
