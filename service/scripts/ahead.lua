-- What a job submitted now would come upon, or what a job that is there has before its end.
-- Returns {network evaluations that are not done, those of the owner, the owner's jobs that have not ended, model,
-- evaluations of it that come before, all of it that are not done, model, ...}. Those due before it come before it,
-- waiting or under way, for at every network call what is due first goes first; of a job that is there its own, too.
-- ARGV: job or "" for a new one, evaluations of each of its images, patience [us per evaluation], priority, owner,
--       model, model, ...
local score = now_us() + ARGV[2] * ARGV[3] - ARGV[4] * PRIORITY_US
if ARGV[1] ~= '' then score = tonumber(redis.call('HGET', P .. 'job:' .. ARGV[1], 'score') or '0') end
local before, there = {}, {}

local function count(model, evaluations, share_before)
  before[model] = (before[model] or 0) + evaluations * share_before
  there[model] = (there[model] or 0) + evaluations
end

for i = 6, #ARGV do
  for _, lane in ipairs(redis.call('ZRANGE', P .. 'lanes:' .. ARGV[i], 0, -1)) do
    local key = P .. 'lane:' .. lane
    local each = redis.call('HGET', P .. 'job:' .. redis.call('ZRANGE', key, 0, 0)[1], 'evaluations')
    local cost = redis.call('HGET', P .. 'lane-images', lane) * each
    count(ARGV[i], cost, redis.call('ZCOUNT', key, '-inf', score) / redis.call('ZCARD', key))
  end
end
for _, batch in ipairs(redis.call('ZRANGE', P .. 'leases', 0, -1)) do
  local noted, out = {}, redis.call('HMGET', P .. 'batch:' .. batch, 'parts', 'lane')
  for id, images in string.gmatch(out[1] or '', '(%x+):%d+:(%d+)') do
    local job = redis.call('HMGET', P .. 'job:' .. id, 'score', 'evaluations', 'progress:' .. batch)
    if job[1] then
      local left = images * job[2] - (noted[id] and 0 or tonumber(job[3] or '0'))
      count(model_of(out[2]), left, tonumber(job[1]) <= score and 1 or 0)
      noted[id] = true
    end
  end
end
local load = redis.call('HMGET', P .. 'load', 'evaluations', 'evaluations:' .. ARGV[5], 'jobs:' .. ARGV[5])
local told = {tonumber(load[1] or '0'), tonumber(load[2] or '0'), tonumber(load[3] or '0')}
for model, evaluations in pairs(before) do
  told[#told + 1] = model
  told[#told + 1] = math.floor(math.max(0, evaluations))
  told[#told + 1] = math.floor(math.max(0, there[model]))
end
return told
