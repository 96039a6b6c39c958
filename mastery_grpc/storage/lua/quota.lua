-- Settles one caller's calls of one class, counted by slots of time.
--
-- KEYS[1] - a hash: for each slot of the last period, the calls that count in it
-- ARGV[1] - the limit: calls in a period
-- ARGV[2] - a slot's length in milliseconds
-- ARGV[3] - slots in a period
-- ARGV[4] - calls already made, which count whatever is left
-- ARGV[5] - calls that wait
-- ARGV[6] - calls that the lease may have
-- ARGV[7] - calls granted and not made
-- ARGV[8] - the slot that they were granted in
-- ARGV[9] - a lease is at most one in so many of the calls that are left
--
-- Returns the calls granted, the calls that are left beside, the milliseconds until a call is left (0 if one is
-- left or was granted), and the slot.
local limit, length, slots = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
local paid, waiting, wish = tonumber(ARGV[4]), tonumber(ARGV[5]), tonumber(ARGV[6])
local returned, largest_share = tonumber(ARGV[7]), tonumber(ARGV[9])
-- By the clock of this server: those of the processes differ.
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local slot = math.floor(now / length)

local counts, used = {}, 0
local fields = redis.call('HGETALL', KEYS[1])
for i = 1, #fields, 2 do
  local its, count = tonumber(fields[i]), tonumber(fields[i + 1])
  if fields[i] == ARGV[8] and returned > 0 then
    count = math.max(0, count - returned)
    redis.call('HSET', KEYS[1], fields[i], count)
  end
  -- The slot that the period begins in counts in full: never are there more calls in a period than the limit.
  if its < slot - slots or count == 0 then
    redis.call('HDEL', KEYS[1], fields[i])
  else
    counts[#counts + 1] = {its, count}
    used = used + count
  end
end

local left = limit - used - paid
local granted = 0
if left > 0 then
  granted = math.min(left, waiting)
  local beside = left - granted
  granted = granted + math.min(beside, wish, math.max(1, math.floor(beside / largest_share)))
  left = left - granted
end
if paid + granted > 0 then
  redis.call('HINCRBY', KEYS[1], slot, paid + granted)
  redis.call('PEXPIRE', KEYS[1], (slots + 2) * length)
  counts[#counts + 1] = {slot, paid + granted}
end

local retry_after = 0
if left <= 0 and granted == 0 then
  table.sort(counts, function(a, b) return a[1] < b[1] end)
  local freed = left
  for _, count in ipairs(counts) do
    freed = freed + count[2]
    retry_after = (count[1] + slots + 1) * length - now
    if freed > 0 then break end
  end
end
return {granted, left, retry_after, slot}
