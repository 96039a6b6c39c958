-- Replaces the mark of an erasure, if it is the one that is expected.
--
-- KEYS  1 mark
-- ARGV  1 receipt id   2 new mark (JSON), or empty to give it an origin   3 the origin
-- Returns the mark that the student has now, nil for none of this receipt.

local mark = redis.call('GET', KEYS[1])
if not mark or not string.find(mark, '"receipt_id":"' .. ARGV[1] .. '"', 1, true) then
  return false
end
local new, origin = ARGV[2], ARGV[3]
if new == '' then
  -- The record that came first announces it, however often it is read.
  new = mark
else
  -- It may have come in the meantime.
  origin = string.match(mark, '"origin":"([^"]*)"') or ''
end
new = string.gsub(new, '"origin":""', function() return '"origin":"' .. origin .. '"' end, 1)
redis.call('SET', KEYS[1], new, 'KEEPTTL')
return new
