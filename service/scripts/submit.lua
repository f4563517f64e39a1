-- Queue a job, unless the work accepted so far would exceed the limit. A repeated call answers as the first, and so
-- does one with the same idempotency key and body.
-- Returns {job, its record}, {"full"}, or {"reused"} for an idempotency key that came with another body.
-- ARGV: id, kind, lane, count, evaluations per image, request, most evaluations, patience [us per evaluation], owner,
--       priority, deadline [ms from now] or 0, idempotency key or "", hash of the body
local OLD = 2  -- jobs of the caller that are looked at, whether they are gone
local id, lane, count, evaluations, owner = ARGV[1], ARGV[3], tonumber(ARGV[4]), tonumber(ARGV[5]), ARGV[9]
local key = P .. 'job:' .. id
if redis.call('EXISTS', key) == 1 then return {id, record(id)} end
local promise = ARGV[12] ~= '' and P .. 'idempotency:' .. owner .. ':' .. ARGV[12]
if promise then
  local first, hash = string.match(redis.call('GET', promise) or '', '^(%x+) (%x+)$')
  if hash and hash ~= ARGV[13] then return {'reused'} end
  if first and redis.call('EXISTS', P .. 'job:' .. first) == 1 then return {first, record(first)} end
end
local load = tonumber(redis.call('HGET', P .. 'load', 'evaluations') or '0')
if load + count * evaluations > tonumber(ARGV[7]) then return {'full'} end
-- In microseconds, so that jobs of one millisecond keep their order. Every evaluation postpones a job by the patience.
local t = now_us()
local score = t + evaluations * ARGV[8] - ARGV[10] * PRIORITY_US
redis.call('HSET', key, 'kind', ARGV[2], 'lane', lane, 'status', 'queued', 'request', ARGV[6],
  'count', count, 'evaluations', evaluations, 'queued', '0:' .. count, 'done', 0, 'attempts', 1,
  'score', score, 'submitted_ms', t / 1000, 'owner', owner, 'priority', ARGV[10])
redis.call('HINCRBY', P .. 'load', 'evaluations', count * evaluations)
redis.call('ZADD', P .. 'lane:' .. lane, score, id)
redis.call('HINCRBY', P .. 'lane-images', lane, count)
index_lane(lane)
local own = P .. 'jobs:' .. owner
for _, old in ipairs(redis.call('ZRANGE', own, 0, OLD - 1)) do
  if redis.call('EXISTS', P .. 'job:' .. old) == 0 then redis.call('ZREM', own, old) end
end
redis.call('ZADD', own, t, id)
if ARGV[11] ~= '0' then
  redis.call('HSET', key, 'deadline_ms', t / 1000 + ARGV[11])
  redis.call('ZADD', P .. 'deadlines', t / 1000 + ARGV[11], id)
end
if promise then redis.call('SET', promise, id .. ' ' .. ARGV[13], 'PX', DAY_MS) end
wake(model_of(lane))
publish(id, 'queued')
return {id, record(id)}
