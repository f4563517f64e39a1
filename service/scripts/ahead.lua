-- The network evaluations that would come before a job submitted now: those under way, and those due before it.
-- ARGV: evaluations of each of its images, patience [us per evaluation], priority, model, model, ...
local score = now_us() + ARGV[1] * ARGV[2] - ARGV[3] * PRIORITY_US
local waiting, before = 0, 0
for i = 4, #ARGV do
  for _, lane in ipairs(redis.call('ZRANGE', P .. 'lanes:' .. ARGV[i], 0, -1)) do
    local key = P .. 'lane:' .. lane
    local each = redis.call('HGET', P .. 'job:' .. redis.call('ZRANGE', key, 0, 0)[1], 'evaluations')
    local cost = redis.call('HGET', P .. 'lane-images', lane) * each
    waiting = waiting + cost
    before = before + cost * redis.call('ZCOUNT', key, '-inf', score) / redis.call('ZCARD', key)
  end
end
local accepted = tonumber(redis.call('HGET', P .. 'load', 'evaluations') or '0')
return math.floor(math.max(0, accepted - waiting) + before)
