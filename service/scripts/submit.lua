-- Queue a job, unless the work accepted so far would exceed the limit. A repeated call answers as the first, and so
-- does one with the same idempotency key and body.
-- Returns {job, its record}, {"full"}, {"reused"} for an idempotency key that came with another body, or the limit of the
-- owner that is reached: {"per_minute", ms to wait}, {"evaluations", those not done}, {"jobs", those not ended}.
-- ARGV: id, kind, lane, count, evaluations per image, request, most evaluations, patience [us per evaluation], owner,
--       priority, deadline [ms from now] or 0, idempotency key or "", hash of the body, what an evaluation takes [us],
--       and limits of the owner, 0 for none: submissions per minute, evaluations not done, jobs not ended;
--       webhook {url, events} as JSON, or ""; traceparent, or ""
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
local t, cost = now_us(), count * evaluations
local load = redis.call('HMGET', P .. 'load', 'evaluations', 'evaluations:' .. owner, 'jobs:' .. owner)
local rate, most_evaluations, most_jobs = tonumber(ARGV[15]), tonumber(ARGV[16]), tonumber(ARGV[17])
local pace = P .. 'pace:' .. owner
local paced = 0
if rate > 0 then
  -- As many at once as in a minute, then one in every such part of it.
  paced = math.max(tonumber(redis.call('GET', pace) or '0'), t) + MINUTE_US / rate
  if paced - MINUTE_US > t then return {'per_minute', math.ceil((paced - MINUTE_US - t) / 1000)} end
end
if most_jobs > 0 and tonumber(load[3] or '0') >= most_jobs then return {'jobs', tonumber(load[3])} end
local own_load = tonumber(load[2] or '0')
if most_evaluations > 0 and own_load + cost > most_evaluations then return {'evaluations', own_load} end
if tonumber(load[1] or '0') + cost > tonumber(ARGV[7]) then return {'full'} end
if rate > 0 then redis.call('SET', pace, string.format('%.0f', paced), 'PX', 120000) end
-- In microseconds, so that jobs of one millisecond keep their order. A caller's jobs begin behind each other, as if it
-- had a device of its own, so that many of one caller do not come before the few of another. Every evaluation
-- postpones a job by the patience.
local begins = math.max(t, tonumber(redis.call('HGET', P .. 'virtual-time', owner) or '0'))
redis.call('HSET', P .. 'virtual-time', owner, string.format('%.0f', begins + cost * ARGV[14]))
local score = begins + evaluations * ARGV[8] - ARGV[10] * PRIORITY_US
redis.call('HSET', key, 'kind', ARGV[2], 'lane', lane, 'status', 'queued', 'request', ARGV[6],
  'count', count, 'evaluations', evaluations, 'queued', '0:' .. count, 'done', 0, 'attempts', 1,
  'score', score, 'submitted_ms', t / 1000, 'begins_ms', begins / 1000 - ARGV[10] * PRIORITY_US / 1000,
  'owner', owner)
if ARGV[18] ~= '' then redis.call('HSET', key, 'webhook', ARGV[18]) end
if ARGV[19] ~= '' then redis.call('HSET', key, 'traceparent', ARGV[19]) end
settle(owner, cost, 1)
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
