-- Queue a job, unless the work accepted so far would exceed the limit. A repeated call answers as the first.
-- Returns the job as `read` does, or {} when the queue is full.
-- ARGV: id, kind, lane, count, evaluations per image, request, most evaluations,
--       patience [us per evaluation]
local id, lane, count, evaluations = ARGV[1], ARGV[3], tonumber(ARGV[4]), tonumber(ARGV[5])
local key = P .. 'job:' .. id
if redis.call('EXISTS', key) == 1 then return record(id) end
local load = tonumber(redis.call('HGET', P .. 'load', 'evaluations') or '0')
if load + count * evaluations > tonumber(ARGV[7]) then return {} end
-- In microseconds, so that jobs of one millisecond keep their order. Every evaluation postpones a job by the patience.
local t = now_us()
local score = t + evaluations * ARGV[8]
redis.call('HSET', key, 'kind', ARGV[2], 'lane', lane, 'status', 'queued', 'request', ARGV[6],
  'count', count, 'evaluations', evaluations, 'queued', '0:' .. count, 'done', 0, 'attempts', 1,
  'score', score, 'submitted_ms', t / 1000)
redis.call('HINCRBY', P .. 'load', 'evaluations', count * evaluations)
redis.call('ZADD', P .. 'lane:' .. lane, score, id)
redis.call('HINCRBY', P .. 'lane-images', lane, count)
index_lane(lane)
wake(model_of(lane))
publish(id, 'queued')
return record(id)
