-- Replaces what is stored of one student by what his log says: all of it or nothing.
--
-- KEYS  1 current mastery   2 activity   3 prediction   4 path   5 mark of an erasure   6 days with a snapshot
--       7 event log
--       then, for each day, the snapshot and its completion, quiz, quality and consistency
-- ARGV  1 the revision that was compared with the log, as version.rebuilds
--       2 current mastery (JSON), of a greater revision   3 activity (JSON)
--       4 channel   5 announcement (JSON)   6 seconds to live of a snapshot that was missing
--       7 number of days
--       then snapshot (JSON), the four scores and the date of each day
--       then the ids of the log entries to forget
-- Returns 1 if it was written; 0 if the student has moved on.
--
-- It never overwrites a newer state, because it compares the revision. A newer state never rests on what it
-- overwrote, because it leaves a revision behind that no writer can have loaded before.

local stored = redis.call('GET', KEYS[1])
local version = stored and string.match(stored, '^{"version":(%d+)') or '0'
local rebuilds = stored and string.match(stored, '^{"version":%d+,"rebuilds":(%d+)') or '0'
if not stored then
  local mark = redis.call('GET', KEYS[5])
  rebuilds = mark and string.match(mark, '^{"rebuilds":(%d+)') or '0'
end
if version .. '.' .. rebuilds ~= ARGV[1] then
  return 0
end

redis.call('SET', KEYS[1], ARGV[2])
-- Lifetimes stay: a student's data is not kept longer because somebody recomputed it.
redis.call('SET', KEYS[2], ARGV[3], 'XX', 'KEEPTTL')
local now = redis.call('TIME')[1]
local arg, key = 7, 7
for _ = 1, ARGV[7] do
  for part = 1, 5 do
    local name, value = KEYS[key + part], ARGV[arg + part]
    if not redis.call('SET', name, value, 'XX', 'KEEPTTL') then
      redis.call('SET', name, value, 'EX', ARGV[6])
    end
  end
  key = key + 5
  arg = arg + 6
  if redis.call('ZADD', KEYS[6], 'NX', now, ARGV[arg]) == 1 then
    redis.call('EXPIRE', KEYS[6], ARGV[6])
  end
end
for i = arg + 1, #ARGV do
  redis.call('XDEL', KEYS[7], ARGV[i])
end
redis.call('UNLINK', KEYS[3], KEYS[4])
redis.call('PUBLISH', ARGV[4], ARGV[5])
return 1
