-- Reads a cohort, all of one moment.
--
-- KEYS  1 profile   2 members   3 requests
-- ARGV  1 id of a request, empty for none
-- Returns the profile, empty for none; the members; and what the request was, empty if it is not known.

local request = ARGV[1] ~= '' and redis.call('HGET', KEYS[3], ARGV[1])
return {redis.call('GET', KEYS[1]) or '', redis.call('SMEMBERS', KEYS[2]), request or ''}
