-- Puts an item of a student back, with its result, into a batch; makes the batch up as an ended one if it is gone.
--
-- KEYS  1 state   2 items   3 results   4 scores
-- ARGV  1 when the batch ends, in milliseconds of the epoch   2 number of fields of the state
--       then the fields of the state and their values, then place, item, result and score; empty for none

local at = 3 + 2 * tonumber(ARGV[2])
if redis.call('EXISTS', KEYS[1]) == 0 then
  for i = 3, at - 1, 2 do
    redis.call('HSET', KEYS[1], ARGV[i], ARGV[i + 1])
  end
end
local place, item, result, score = ARGV[at], ARGV[at + 1], ARGV[at + 2], ARGV[at + 3]
redis.call('HSET', KEYS[2], place, item)
if result ~= '' then
  local before = redis.call('HGET', KEYS[3], place)
  redis.call('HSET', KEYS[3], place, result)
  for sign, each in pairs({[1] = result, [-1] = before or ''}) do
    if each ~= '' then
      local counter = string.sub(each, 1, 10) == '{"ok":true' and 'succeeded' or 'failed'
      redis.call('HINCRBY', KEYS[1], counter, sign)
    end
  end
  redis.call('ZREM', KEYS[4], place)
  if score ~= '' then
    redis.call('ZADD', KEYS[4], score, place)
  end
end
for _, key in ipairs(KEYS) do
  redis.call('PEXPIREAT', key, ARGV[1])
end
return 1
