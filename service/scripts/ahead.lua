-- What a job submitted now would come upon.
-- Returns {network evaluations that would come before it: those due before it, waiting or under way, for at every network
-- call what is due first goes first; all that are not done; those of its owner, and its owner's jobs that have not ended}.
-- ARGV: evaluations of each of its images, patience [us per evaluation], priority, owner, model, model, ...
local score = now_us() + ARGV[1] * ARGV[2] - ARGV[3] * PRIORITY_US
local before = 0
for i = 5, #ARGV do
  for _, lane in ipairs(redis.call('ZRANGE', P .. 'lanes:' .. ARGV[i], 0, -1)) do
    local key = P .. 'lane:' .. lane
    local each = redis.call('HGET', P .. 'job:' .. redis.call('ZRANGE', key, 0, 0)[1], 'evaluations')
    local cost = redis.call('HGET', P .. 'lane-images', lane) * each
    before = before + cost * redis.call('ZCOUNT', key, '-inf', score) / redis.call('ZCARD', key)
  end
end
for _, batch in ipairs(redis.call('ZRANGE', P .. 'leases', 0, -1)) do
  local noted = {}
  for id, images in string.gmatch(redis.call('HGET', P .. 'batch:' .. batch, 'parts') or '', '(%x+):%d+:(%d+)') do
    local job = redis.call('HMGET', P .. 'job:' .. id, 'score', 'evaluations', 'progress:' .. batch)
    if job[1] and tonumber(job[1]) <= score then
      before = before + images * job[2] - (noted[id] and 0 or tonumber(job[3] or '0'))
      noted[id] = true
    end
  end
end
local load = redis.call('HMGET', P .. 'load', 'evaluations', 'evaluations:' .. ARGV[4], 'jobs:' .. ARGV[4])
local accepted, own, jobs = tonumber(load[1] or '0'), tonumber(load[2] or '0'), tonumber(load[3] or '0')
return {math.floor(math.max(0, before)), accepted, own, jobs}
