-- Record the images of some jobs of a batch, all or nothing: a batch that was given back is refused, and so is a job
-- that would end before its result is written. A job whose images were made by two checkpoints fails. The batch ends
-- with its last job. A repeated call answers as the first.
-- Returns {"stale"}, {"write", job, ...} or {"done", ended job, its record, ...}.
-- ARGV: batch, retention [ms], error of a mixed job, report: {jobs: {job: {began_ms_ago, sampled_ms_ago, images,
--       arithmetic, checkpoint, is_written, labels: {start: text}}}}
local batch, report = ARGV[1], cjson.decode(ARGV[4])
local key = P .. 'batch:' .. batch
local batch_record = redis.call('HMGET', key, 'parts', 'delivered')
if not batch_record[1] then return {'stale'} end

local share, starts, left = {}, {}, {}
for _, part in ipairs(parts(batch_record[1])) do
  local id = part[1]
  if report.jobs[id] then
    share[id] = (share[id] or 0) + part[3]
    starts[id] = starts[id] or {}
    table.insert(starts[id], part[2])
  else
    left[#left + 1] = table.concat(part, ':')
  end
end

local unwritten, mixed = {'write'}, {}
for id, images in pairs(share) do
  local job = redis.call('HMGET', P .. 'job:' .. id, 'status', 'count', 'done', 'checkpoint')
  mixed[id] = is_open(job[1]) and job[4] and job[4] ~= report.jobs[id].checkpoint
  if not mixed[id] and is_open(job[1]) and job[3] + images >= tonumber(job[2]) and not report.jobs[id].is_written then
    unwritten[#unwritten + 1] = id
  end
end
if #unwritten > 1 then return unwritten end

local t, delivered = now(), {}
for id, images in pairs(share) do
  local job_key, of_job = P .. 'job:' .. id, report.jobs[id]
  local job = redis.call('HMGET', job_key, 'status', 'count', 'evaluations', 'batch_images', 'began_ms', 'sampled_ms', 'owner')
  delivered[#delivered + 1] = id
  if mixed[id] then
    finish(id, 'failed', ARGV[3], t, ARGV[2])
  elseif is_open(job[1]) then
    for _, start in ipairs(starts[id]) do
      redis.call('HSET', job_key, 'labels:' .. start, of_job.labels[tostring(start)])
    end
    local began, sampled = t - of_job.began_ms_ago, t - of_job.sampled_ms_ago
    redis.call('HSET', job_key, 'began_ms', math.min(began, tonumber(job[5] or began)),
      'sampled_ms', math.max(sampled, tonumber(job[6] or sampled)))
    redis.call('HSET', job_key, 'checkpoint', of_job.checkpoint, 'arithmetic', of_job.arithmetic,
      'batch_images', math.max(of_job.images, tonumber(job[4] or '0')))
    redis.call('HDEL', job_key, 'progress:' .. batch)
    local done = redis.call('HINCRBY', job_key, 'done', images)
    settle(job[7] or '', -images * job[3], 0)
    if done >= tonumber(job[2]) then
      finish(id, 'succeeded', '', t, ARGV[2])
    else
      publish(id, 'progress')
    end
  end
end
if #delivered > 0 then
  local all = table.concat(delivered, ';')
  if batch_record[2] then all = batch_record[2] .. ';' .. all end
  redis.call('HSET', key, 'parts', table.concat(left, ';'), 'delivered', all)
  batch_record[2] = all
  if #left == 0 then
    redis.call('PEXPIRE', key, 300000)
    redis.call('ZREM', P .. 'leases', batch)
  end
end

local told, known = {'done'}, {}
for id in string.gmatch(batch_record[2] or '', '[^;]+') do known[id] = true end
for id in pairs(report.jobs) do
  if mixed[id] or (known[id] and redis.call('HGET', P .. 'job:' .. id, 'status') == 'succeeded') then
    told[#told + 1] = id
    told[#told + 1] = record(id)
  end
end
return told
