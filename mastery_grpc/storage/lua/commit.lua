-- Writes one update of one student: all of it or nothing.
--
-- KEYS  1 current mastery   2 event log   3 activity   4 prediction   5 path   6 mark of an erasure
--       7 days with a snapshot
--       then the processing record of each event
--       then, for each day, the snapshot and its completion, quiz, quality and consistency
-- ARGV  1 the revision that the update was computed from, as version.rebuilds; of a new student 0.0, of one who was
--         erased before 0 and the rebuilds of the mark
--       2 current mastery (JSON)   3 activity (JSON)   4 channel   5 announcement (JSON)
--       6-9 seconds to live: event log, processing records, activity, snapshots
--       10 number of events   11 number of days
--       then event and processing record (JSON) of each event
--       then snapshot (JSON), the four scores and the date of each day
--       then the ids of the log entries to forget
-- Returns 1 if the update was written; 0 if the student has moved on, or an event is known already.

local stored = redis.call('GET', KEYS[1])
local version = stored and string.match(stored, '^{"version":(%d+)') or '0'
local rebuilds = stored and string.match(stored, '^{"version":%d+,"rebuilds":(%d+)') or '0'
if not stored then
  local mark = redis.call('GET', KEYS[6])
  rebuilds = mark and string.match(mark, '^{"rebuilds":(%d+)') or '0'
end
if version .. '.' .. rebuilds ~= ARGV[1] then
  return 0
end

local events, days = tonumber(ARGV[10]), tonumber(ARGV[11])
for i = 1, events do
  if redis.call('EXISTS', KEYS[7 + i]) == 1 then
    return 0
  end
end

redis.call('SET', KEYS[1], ARGV[2])
local arg = 11
for i = 1, events do
  redis.call('XADD', KEYS[2], '*', 'event', ARGV[arg + 1])
  redis.call('SET', KEYS[7 + i], ARGV[arg + 2], 'EX', ARGV[7])
  arg = arg + 2
end

local key = 7 + events
local now = tonumber(redis.call('TIME')[1])
for _ = 1, days do
  redis.call('ZADD', KEYS[7], now, ARGV[arg + 6])
  for part = 1, 5 do
    redis.call('SET', KEYS[key + part], ARGV[arg + part], 'EX', ARGV[9])
  end
  key = key + 5
  arg = arg + 6
end
redis.call('ZREMRANGEBYSCORE', KEYS[7], '-inf', now - ARGV[9])
redis.call('EXPIRE', KEYS[7], ARGV[9])

for i = arg + 1, #ARGV do
  redis.call('XDEL', KEYS[2], ARGV[i])
end
redis.call('EXPIRE', KEYS[2], ARGV[6])
redis.call('SET', KEYS[3], ARGV[3], 'EX', ARGV[8])
redis.call('UNLINK', KEYS[4], KEYS[5])
redis.call('PUBLISH', ARGV[4], ARGV[5])
return 1
