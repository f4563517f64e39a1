-- A job with its place among the jobs that wait for its model (0 = next), as {fields, place}; {} when there is none.
-- ARGV: id
local fields = redis.call('HGETALL', P .. 'job:' .. ARGV[1])
if #fields == 0 then return {} end
local job = redis.call('HMGET', P .. 'job:' .. ARGV[1], 'status', 'lane', 'score')
local place = 0
if job[1] == 'queued' then
  place = redis.call('ZRANK', P .. 'lane:' .. job[2], ARGV[1])
  for _, lane in ipairs(redis.call('ZRANGE', P .. 'lanes:' .. model_of(job[2]), 0, -1)) do
    if lane ~= job[2] then place = place + redis.call('ZCOUNT', P .. 'lane:' .. lane, '-inf', '(' .. job[3]) end
  end
end
return {fields, place}
