-- Erases a student: deletes everything under his own keys, and leaves a mark. All of it or nothing.
--
-- KEYS  1 current mastery   2 mark of an erasure   3 event log   4 days with a snapshot   5 activity   6 prediction
--       7 path   8 feedback   9 salt of his pseudonym
-- ARGV  1 the mark (JSON), with "rebuilds":0 first and "counts":{}   2 receipt id, as it stands in the mark
--       3 seconds to live of the mark   4 channel   5 announcement (JSON)
--       6 prefix of the snapshots' keys   7 prefix of the processing records' keys
-- Returns the mark that he has now.
--
-- The snapshots' and records' keys cannot be declared: which there are is known in here only, and whoever looked
-- before could be overtaken by events without end. They are in the same slot.

local before = redis.call('GET', KEYS[2])
if before and string.find(before, '"receipt_id":"' .. ARGV[2] .. '"', 1, true) then
  return before
end

local stored = redis.call('GET', KEYS[1])
local rebuilds = stored and string.match(stored, '^{"version":%d+,"rebuilds":(%d+)') or 0
local marked = before and string.match(before, '^{"rebuilds":(%d+)') or 0
rebuilds = math.max(tonumber(rebuilds), tonumber(marked)) + 1

local counts = {}
local function count(kind, number)
  if number > 0 then
    counts[#counts + 1] = '"' .. kind .. '":' .. string.format('%.0f', number)
  end
end

local snapshots, records, feedback = 0, 0, 0
for _, day in ipairs(redis.call('ZRANGE', KEYS[4], 0, -1)) do
  local key = ARGV[6] .. day
  snapshots = snapshots + redis.call('UNLINK', key)
  redis.call('UNLINK', key .. ':completion', key .. ':quiz', key .. ':quality', key .. ':consistency')
end
local entries = redis.call('XRANGE', KEYS[3], '-', '+')
for _, entry in ipairs(entries) do
  local id = string.match(entry[2][2], '"event_id":"([^"]+)"')
  if id then
    records = records + redis.call('UNLINK', ARGV[7] .. id)
  end
end
for _, field in ipairs(redis.call('HKEYS', KEYS[8])) do
  if field ~= 'revision' and string.sub(field, 1, 8) ~= 'request:' then
    feedback = feedback + 1
  end
end
count('current_mastery', redis.call('UNLINK', KEYS[1]))
count('snapshot', snapshots)
count('event', #entries)
count('processing_record', records)
count('activity', redis.call('UNLINK', KEYS[5]))
count('prediction', redis.call('UNLINK', KEYS[6]))
count('learning_path', redis.call('UNLINK', KEYS[7]))
count('feedback', feedback)
redis.call('UNLINK', KEYS[3], KEYS[4], KEYS[8], KEYS[9])

local mark = string.gsub(ARGV[1], '^{"rebuilds":0', '{"rebuilds":' .. string.format('%.0f', rebuilds), 1)
mark = string.gsub(mark, '"counts":{}', '"counts":{' .. table.concat(counts, ',') .. '}', 1)
redis.call('SET', KEYS[2], mark, 'EX', ARGV[3])
redis.call('PUBLISH', ARGV[4], ARGV[5])
return mark
