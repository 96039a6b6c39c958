-- Replaces what is stored of one student by what his log says: all of it or nothing.
--
-- KEYS  1 current mastery   2 activity   3 prediction   4 path
--       then, for each day, the snapshot and its completion, quiz, quality and consistency
-- ARGV  1 the revision that was compared with the log, as version.rebuilds
--       2 current mastery (JSON), of a greater revision   3 activity (JSON)
--       4 channel   5 announcement (JSON)   6 seconds to live of a snapshot that was missing
--       then snapshot (JSON) and the four scores of each day
-- Returns 1 if it was written; 0 if the student has moved on.
--
-- It never overwrites a newer state, because it compares the revision. A newer state never rests on what it
-- overwrote, because it leaves a revision behind that no writer can have loaded before.

local stored = redis.call('GET', KEYS[1])
local version = stored and string.match(stored, '^{"version":(%d+)') or '0'
local rebuilds = stored and string.match(stored, '^{"version":%d+,"rebuilds":(%d+)') or '0'
if version .. '.' .. rebuilds ~= ARGV[1] then
  return 0
end

redis.call('SET', KEYS[1], ARGV[2])
-- Lifetimes stay: a student's data is not kept longer because somebody recomputed it.
redis.call('SET', KEYS[2], ARGV[3], 'XX', 'KEEPTTL')
for i = 5, #KEYS do
  if not redis.call('SET', KEYS[i], ARGV[i + 2], 'XX', 'KEEPTTL') then
    redis.call('SET', KEYS[i], ARGV[i + 2], 'EX', ARGV[6])
  end
end
redis.call('UNLINK', KEYS[3], KEYS[4])
redis.call('PUBLISH', ARGV[4], ARGV[5])
return 1
