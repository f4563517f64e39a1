-- Record the images of a batch, all or nothing: a batch that was given back is refused, and so is one that would end
-- a job whose result is not written yet. A repeated call answers as the first.
-- Returns {"stale"}, {"write", job, ...} or {"done", ended job, its record, ...}.
-- ARGV: batch, retention [ms], report: {timings: {name: ms}, images, checkpoint, written: {job: true},
--       labels: {"job:start": text}}
local batch, report = ARGV[1], cjson.decode(ARGV[3])
local key = P .. 'batch:' .. batch
local batch_record = redis.call('HMGET', key, 'parts', 'ended')

local function done(ended)
  local told = {'done'}
  for id in string.gmatch(ended, '[^;]+') do
    told[#told + 1] = id
    told[#told + 1] = record(id)
  end
  return told
end

if batch_record[2] then return done(batch_record[2]) end
if not batch_record[1] then return {'stale'} end

local share, order, unwritten = {}, {}, {'write'}
for _, part in ipairs(parts(batch_record[1])) do
  if not share[part[1]] then order[#order + 1] = part[1] end
  share[part[1]] = (share[part[1]] or 0) + part[3]
end
for _, id in ipairs(order) do
  local job = redis.call('HMGET', P .. 'job:' .. id, 'status', 'count', 'done')
  if is_open(job[1]) and job[3] + share[id] >= tonumber(job[2]) and not report.written[id] then
    unwritten[#unwritten + 1] = id
  end
end
if #unwritten > 1 then return unwritten end

local t, ended = now(), {}
for _, part in ipairs(parts(batch_record[1])) do
  local job_key = P .. 'job:' .. part[1]
  if is_open(redis.call('HGET', job_key, 'status')) then
    redis.call('HSET', job_key, 'labels:' .. part[2], report.labels[part[1] .. ':' .. part[2]])
  end
end
for _, id in ipairs(order) do
  local job_key = P .. 'job:' .. id
  local job = redis.call('HMGET', job_key, 'status', 'count', 'evaluations', 'batch_images')
  if is_open(job[1]) then
    for name, ms in pairs(report.timings) do redis.call('HINCRBYFLOAT', job_key, name, ms) end
    redis.call('HSET', job_key, 'checkpoint', report.checkpoint,
      'batch_images', math.max(report.images, tonumber(job[4] or '0')))
    redis.call('HDEL', job_key, 'progress:' .. batch)
    local done = redis.call('HINCRBY', job_key, 'done', share[id])
    redis.call('HINCRBY', P .. 'load', 'evaluations', -share[id] * job[3])
    if done >= tonumber(job[2]) then
      finish(id, 'succeeded', '', t, ARGV[2])
      ended[#ended + 1] = id
    else
      publish(id, 'progress')
    end
  end
end
ended = table.concat(ended, ';')
redis.call('HSET', key, 'ended', ended)
redis.call('PEXPIRE', key, 300000)
redis.call('ZREM', P .. 'leases', batch)
return done(ended)
