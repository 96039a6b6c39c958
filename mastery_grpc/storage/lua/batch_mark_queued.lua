-- Notes that the chunks of a batch were queued.
--
-- KEYS  1 state
-- Not where it has been dropped meanwhile: nobody would drop what this made.

if redis.call('EXISTS', KEYS[1]) == 1 then
  redis.call('HSET', KEYS[1], 'queued', '1')
end
return 1
