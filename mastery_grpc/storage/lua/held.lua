-- Reads everything under a student's own keys, all of one moment.
--
-- KEYS  1 current mastery   2 event log   3 days with a snapshot   4 activity   5 prediction   6 path   7 feedback
-- ARGV  1 prefix of the snapshots' keys   2 prefix of the processing records' keys
-- Returns the values of KEYS 1, 4, 5 and 6, each with the time when it expires; then the same of the event log and the
-- feedback, whose values are entries and fields; then the snapshots, as day, value and time, and the processing
-- records, as event id, value and time. Times are in milliseconds since 1970; 0 for never.
--
-- The snapshots' and records' keys are not declared, for the reason that `erase.lua` gives.

local function end_of(key)
  return math.max(0, redis.call('PEXPIRETIME', key))
end

local function value(key)
  return {redis.call('GET', key), end_of(key)}
end

local snapshots = {}
for _, day in ipairs(redis.call('ZRANGE', KEYS[3], 0, -1)) do
  local key = ARGV[1] .. day
  local found = redis.call('GET', key)
  if found then
    snapshots[#snapshots + 1] = {day, found, end_of(key)}
  end
end

local entries, records = redis.call('XRANGE', KEYS[2], '-', '+'), {}
for _, entry in ipairs(entries) do
  local id = string.match(entry[2][2], '"event_id":"([^"]+)"')
  local found = id and redis.call('GET', ARGV[2] .. id)
  if found then
    records[#records + 1] = {id, found, end_of(ARGV[2] .. id)}
  end
end

return {
  value(KEYS[1]), value(KEYS[4]), value(KEYS[5]), value(KEYS[6]),
  {entries, end_of(KEYS[2])}, {redis.call('HGETALL', KEYS[7]), end_of(KEYS[7])},
  snapshots, records,
}
