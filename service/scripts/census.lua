-- What waits and runs: {evaluations accepted and not finished, {lane, jobs, images, evaluations per image,
-- age of the oldest [ms], ...}, {model, jobs running, ...}}.
-- ARGV: model, model, ...
local t, lanes, running = now(), {}, {}
for _, model in ipairs(ARGV) do
  for _, lane in ipairs(redis.call('ZRANGE', P .. 'lanes:' .. model, 0, -1)) do
    local head = redis.call('ZRANGE', P .. 'lane:' .. lane, 0, 0)
    lanes[#lanes + 1] = lane
    lanes[#lanes + 1] = redis.call('ZCARD', P .. 'lane:' .. lane)
    lanes[#lanes + 1] = tonumber(redis.call('HGET', P .. 'lane-images', lane) or '0')
    local job = redis.call('HMGET', P .. 'job:' .. head[1], 'evaluations', 'submitted_ms')
    lanes[#lanes + 1] = tonumber(job[1])
    lanes[#lanes + 1] = math.max(0, t - job[2])
  end
  running[#running + 1] = model
  running[#running + 1] = tonumber(redis.call('HGET', P .. 'load', 'running:' .. model) or '0')
end
return {tonumber(redis.call('HGET', P .. 'load', 'evaluations') or '0'), lanes, running}
