-- Appends entries to the audit log of a school, if it still ends where they were made to follow.
--
-- KEYS  1 log   2 head
-- ARGV  1 head that is expected, empty for none   2 new head   3 place of the first entry   4.. the records
-- Returns 1 if they are in the log, by this call or an earlier one with the same, else 0; the head that the log
-- has now, and the place of the newest entry that was ever in it.

local function newest()
  local info = redis.pcall('XINFO', 'STREAM', KEYS[1])
  if info.err then
    return '0-0'
  end
  for i = 1, #info, 2 do
    if info[i] == 'last-generated-id' then
      return info[i + 1]
    end
  end
end

local function place(index)
  return string.format('%.0f-0', tonumber(ARGV[3]) + index - 4)
end

local head = redis.call('GET', KEYS[2]) or ''
if head ~= ARGV[1] then
  local last = place(#ARGV)
  local found = redis.call('XRANGE', KEYS[1], last, last)[1]
  local is_there = found and found[2][2] == ARGV[#ARGV]
  return {is_there and 1 or 0, head, newest()}
end
-- Refused if somebody else has put an entry behind the head: then nothing is written.
local first = redis.pcall('XADD', KEYS[1], place(4), 'e', ARGV[4])
if type(first) == 'table' and first.err then
  if string.sub(first.err, 1, 3) == 'OOM' then
    return redis.error_reply(first.err)
  end
  return {0, head, newest()}
end
for i = 5, #ARGV do
  redis.call('XADD', KEYS[1], place(i), 'e', ARGV[i])
end
redis.call('SET', KEYS[2], ARGV[2])
return {1, ARGV[2], place(#ARGV)}
