-- Puts something that names nobody in the place of items of a student who was erased, and of their results.
--
-- KEYS  1 state   2 items   3 results   4 scores
-- ARGV  1 when he was erased, in microseconds of the epoch; items that were submitted later stay
--       2 channel   3 name of the batch
--       then, for each item, its place, and what is to stand there: item and result (JSON)
-- Returns how many items were replaced; -1 if the batch was submitted later.

local created = redis.call('HGET', KEYS[1], 'created')
if not created then
  return 0
end
if tonumber(created) > tonumber(ARGV[1]) then
  return -1
end
local replaced, failed = 0, 0
for i = 4, #ARGV, 3 do
  local place, item, result = ARGV[i], ARGV[i + 1], ARGV[i + 2]
  local stored = redis.call('HGET', KEYS[2], place)
  if stored and stored ~= item then
    redis.call('HSET', KEYS[2], place, item)
    replaced = replaced + 1
  end
  stored = redis.call('HGET', KEYS[3], place)
  if stored and stored ~= result then
    redis.call('HSET', KEYS[3], place, result)
    redis.call('ZREM', KEYS[4], place)
    if string.sub(stored, 1, 10) == '{"ok":true' then
      failed = failed + 1
    end
  end
end
if failed > 0 then
  redis.call('HINCRBY', KEYS[1], 'succeeded', -failed)
  redis.call('HINCRBY', KEYS[1], 'failed', failed)
  redis.call('PUBLISH', ARGV[2], ARGV[3])
end
return replaced
