-- Adds to the counts of one course, once however often it is called.
--
-- KEYS  1 the mark that this was done; then the counts of each month, then those of each month's exercises, then the
--       students of each week
-- ARGV  1 seconds to live   2 seconds to live of the mark   3 the most exercises to keep of a month
--       4 number of months of counts   5 number of months of exercises
--       then for each further key the number of its arguments, and these: a month's fields, each with what to add to
--       it; a month's exercises, each with a field's name up to the exercise's number, and what to add to it; a
--       week's students

-- Returns the number that stands for an exercise in a month, nil if the month is full.
local function number_of(key, id)
  local number = redis.call('HGET', key, '=' .. id)
  if number then
    return number
  end
  if tonumber(redis.call('HGET', key, 'ids') or 0) < tonumber(ARGV[3]) then
    number = redis.call('HINCRBY', key, 'ids', 1)
    redis.call('HSET', key, '=' .. id, number)
    return number
  end
end

if not redis.call('SET', KEYS[1], '', 'NX', 'EX', ARGV[2]) then
  return
end

local months = tonumber(ARGV[4])
local exercises = months + tonumber(ARGV[5])
local arg = 6
for i = 2, #KEYS do
  local key = KEYS[i]
  local last = arg + tonumber(ARGV[arg])
  if i <= months + 1 then
    for field = arg + 1, last, 2 do
      redis.call('HINCRBY', key, ARGV[field], ARGV[field + 1])
    end
  elseif i <= exercises + 1 then
    for id = arg + 1, last, 3 do
      local number = number_of(key, ARGV[id])
      if number then
        redis.call('HINCRBY', key, ARGV[id + 1] .. number, ARGV[id + 2])
      end
    end
  else
    for student = arg + 1, last do
      redis.call('PFADD', key, ARGV[student])
    end
  end
  redis.call('EXPIRE', key, ARGV[1])
  arg = last + 1
end
