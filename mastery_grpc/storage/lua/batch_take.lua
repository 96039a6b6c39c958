-- Takes a chunk off the first queue that has one which nobody works on.
--
-- KEYS  the queues, the one to look into first in front
-- ARGV  1 group of the workers   2 name of all workers   3 milliseconds after which nobody works on a chunk
-- Returns the place of the queue among the keys, from 1, the id of the entry, its fields, and how often it was
-- handed out; nothing if there is none.

local group, consumer = ARGV[1], ARGV[2]
for place, queue in ipairs(KEYS) do
  local cursor = '0-0'
  repeat
    local claimed = redis.pcall('XAUTOCLAIM', queue, group, consumer, ARGV[3], cursor, 'COUNT', 1)
    if claimed.err then  -- nothing was ever queued here
      break
    end
    cursor = claimed[1]
    local entry = claimed[2][1]
    if entry then
      local pending = redis.call('XPENDING', queue, group, entry[1], entry[1], 1)
      return {place, entry[1], entry[2], pending[1][4]}
    end
  until cursor == '0-0'
  local read = redis.pcall('XREADGROUP', 'GROUP', group, consumer, 'COUNT', 1, 'STREAMS', queue, '>')
  if read and not read.err then
    local entry = read[1][2][1]
    return {place, entry[1], entry[2], 1}
  end
end
return nil
