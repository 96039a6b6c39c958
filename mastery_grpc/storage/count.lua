-- Adds to the counts of one course, once however often it is called.
--
-- KEYS  1 the mark that this was done; then the counts of each month, then the students of each week
-- ARGV  1 seconds to live   2 seconds to live of the mark   3 number of months
--       then for each further key the number of its arguments, and these: a month's fields, each with what to add to
--       it; a week's students

if not redis.call('SET', KEYS[1], '', 'NX', 'EX', ARGV[2]) then
  return
end

local months, arg = tonumber(ARGV[3]), 4
for i = 2, #KEYS do
  local key = KEYS[i]
  local last = arg + tonumber(ARGV[arg])
  if i <= months + 1 then
    for field = arg + 1, last, 2 do
      redis.call('HINCRBY', key, ARGV[field], ARGV[field + 1])
    end
  else
    for student = arg + 1, last do
      redis.call('PFADD', key, ARGV[student])
    end
  end
  redis.call('EXPIRE', key, ARGV[1])
  arg = last + 1
end
