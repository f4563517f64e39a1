-- Put before every script. KEYS[1] is the prefix `pfgmpp:{queue}:`; every key of the queue:
--   job:<id>        hash    one job; expires a retention time after its end
--   gone:<id>       string  whose a job was of which the record has expired; for an hour
--   jobs:<owner>    zset    jobs of a caller -> when they were submitted [us]
--   idempotency:<owner>:<key>  string  "job body-hash" of a submission that may be repeated; for a day
--   deadlines       zset    jobs that expire if they are not begun -> when [ms]
--   lane:<lane>     zset    jobs with unclaimed images -> when they are due [us]; lane = model|kind|...
--   lanes:<model>   zset    lanes of a model that hold such jobs -> score of the head
--   lane-images     hash    lane -> unclaimed images
--   batch:<id>      hash    what a worker has claimed and not delivered; its id fences every answer; gone 5 min after its end
--   leases          zset    batches under way -> when their lease ends [ms]
--   notices         zset    "<job>:<event>" of which webhooks are to be told -> when, or when the lease of who tells it
--                           ends [ms]; until it is told or given up, or its job is gone
--   epoch           string  made when it is not there: by it a server that has lost its data is known
--   load            hash    evaluations accepted and not finished, in all and evaluations:<owner>; jobs:<owner> that
--                           have not ended; running:<model> -> jobs running
--   pace:<owner>    string  when the next submission would be due at the caller's rate [us]; for two minutes
--   virtual-time    hash    owner -> when its next job begins, if it had a device of its own [us]
--   models          hash    model -> the facts last announced by a worker
--   workers         zset    worker -> when it was last seen [ms]
--   worker:<id>     hash    what a worker says of itself; expires with its heartbeat
--   wake:<model>    list    at most 64 tokens for idle workers
--   events          pub/sub "<job> <status>" at each change, "<job> progress" in between
--   arrivals        pub/sub for workers at work: the model for which something waits that did not before, or an order:
--                           "load <model>", "unload <model>", "cancel <job>"
local P = KEYS[1]
local DAY_MS, HOUR_MS, MINUTE_US = 86400000, 3600000, 60e6
local PRIORITY_US = 1e12  -- by which a level of priority comes earlier: more than any path postpones

local function now_us()
  local t = redis.call('TIME')
  return t[1] * 1000000 + t[2]
end

local function now()
  return now_us() / 1000
end

local function model_of(lane)
  return string.match(lane, '^[^|]*')
end

local function publish(id, what)
  redis.call('PUBLISH', P .. 'events', id .. ' ' .. what)
end

local function wake(model)
  local key = P .. 'wake:' .. model
  if redis.call('LLEN', key) < 64 then redis.call('RPUSH', key, '1') end
  redis.call('PUBLISH', P .. 'arrivals', model)
end

-- Bring the index of lanes up to date after the head of a lane may have changed.
local function index_lane(lane)
  local head = redis.call('ZRANGE', P .. 'lane:' .. lane, 0, 0, 'WITHSCORES')
  local index = P .. 'lanes:' .. model_of(lane)
  if #head == 0 then
    redis.call('ZREM', index, lane)
    redis.call('HDEL', P .. 'lane-images', lane)
  else
    redis.call('ZADD', index, head[2], lane)
  end
end

-- "start:length;start:length" as a list of {start, length}.
local function ranges(text)
  local list = {}
  for start, length in string.gmatch(text or '', '(%d+):(%d+)') do
    list[#list + 1] = {tonumber(start), tonumber(length)}
  end
  return list
end

-- "job:start:length;..." of a batch as a list of {job, start, length}.
local function parts(text)
  local list = {}
  for id, start, length in string.gmatch(text or '', '([^:;]+):(%d+):(%d+)') do
    list[#list + 1] = {id, tonumber(start), tonumber(length)}
  end
  return list
end

local function is_open(status)
  return status == 'queued' or status == 'running'
end

-- A job with its place among the jobs that wait for its model (0 = next), as {fields, place}; {} when there is none.
local function record(id)
  local fields = redis.call('HGETALL', P .. 'job:' .. id)
  if #fields == 0 then return {} end
  local job = redis.call('HMGET', P .. 'job:' .. id, 'status', 'lane', 'score')
  local place = 0
  if job[1] == 'queued' then
    place = redis.call('ZRANK', P .. 'lane:' .. job[2], id)
    for _, lane in ipairs(redis.call('ZRANGE', P .. 'lanes:' .. model_of(job[2]), 0, -1)) do
      if lane ~= job[2] then place = place + redis.call('ZCOUNT', P .. 'lane:' .. lane, '-inf', '(' .. job[3]) end
    end
  end
  return {fields, place}
end

-- Count evaluations of a caller that are accepted, or done (negative), and jobs that are begun or ended.
local function settle(owner, evaluations, jobs)
  redis.call('HINCRBY', P .. 'load', 'evaluations', evaluations)
  if redis.call('HINCRBY', P .. 'load', 'evaluations:' .. owner, evaluations) == 0 then
    redis.call('HDEL', P .. 'load', 'evaluations:' .. owner)
  end
  if jobs ~= 0 and redis.call('HINCRBY', P .. 'load', 'jobs:' .. owner, jobs) == 0 then
    redis.call('HDEL', P .. 'load', 'jobs:' .. owner)
    redis.call('HDEL', P .. 'virtual-time', owner)
  end
end

-- Have the webhook of a job, {url, events} as JSON or false, told of an event, if it wants to know.
local function notify(id, webhook, event, t)
  for _, wanted in ipairs(webhook and cjson.decode(webhook).events or {}) do
    if wanted == event then redis.call('ZADD', P .. 'notices', t, id .. ':' .. event) end
  end
end

-- Move an open job to a terminal state: nothing of it stays queued, counted or reserved.
local function finish(id, status, err, t, retention_ms)
  local key = P .. 'job:' .. id
  local job = redis.call('HMGET', key, 'lane', 'queued', 'count', 'done', 'evaluations', 'status', 'deadline_ms', 'owner',
    'webhook')
  local lane = job[1]
  local unclaimed = 0
  for _, range in ipairs(ranges(job[2])) do unclaimed = unclaimed + range[2] end
  if unclaimed > 0 then
    redis.call('ZREM', P .. 'lane:' .. lane, id)
    redis.call('HINCRBY', P .. 'lane-images', lane, -unclaimed)
    index_lane(lane)
  end
  settle(job[8] or '', -(job[3] - job[4]) * job[5], -1)
  if job[6] == 'running' then redis.call('HINCRBY', P .. 'load', 'running:' .. model_of(lane), -1) end
  redis.call('HSET', key, 'status', status, 'queued', '', 'finished_ms', t, 'error', err)
  redis.call('PEXPIRE', key, retention_ms)
  redis.call('SET', P .. 'gone:' .. id, job[8] or '', 'PX', retention_ms + HOUR_MS)
  if job[7] then redis.call('ZREM', P .. 'deadlines', id) end
  notify(id, job[9], status, t)
  publish(id, status)
end

-- End an open job because its caller wants no more of it; workers that hold images of it let go of them.
local function cancel(id, t, retention_ms)
  if redis.call('HGET', P .. 'job:' .. id, 'status') == 'running' then
    redis.call('PUBLISH', P .. 'arrivals', 'cancel ' .. id)
  end
  finish(id, 'canceled', '', t, retention_ms)
end

-- Give the images of a batch back to their lanes, or those of one of its jobs; jobs run alone from now on if the loss
-- is charged to them. A job is charged once for all batches that it had out when it was charged: one accident is one
-- attempt (told by microseconds: what is lost may be claimed again within the millisecond).
-- Returns a flat list of job, model, "requeued" or "failed".
local function give_back(batch, only, err, charged, t, max_attempts, retention_ms)
  local told, seen, left = {}, {}, {}
  local out = redis.call('HMGET', P .. 'batch:' .. batch, 'parts', 'claimed_us')
  for _, part in ipairs(parts(out[1])) do
    local id, start, length = part[1], part[2], part[3]
    local key = P .. 'job:' .. id
    local job = redis.call('HMGET', key, 'status', 'queued', 'lane', 'score', 'attempts', 'charged_us')
    if only ~= '' and id ~= only then
      left[#left + 1] = table.concat(part, ':')
    elseif is_open(job[1]) then
      redis.call('HDEL', key, 'progress:' .. batch)
      if not seen[id] then
        seen[id] = true
        local is_new = charged and tonumber(out[2]) > tonumber(job[6] or '0')
        if is_new and tonumber(job[5]) >= max_attempts then
          finish(id, 'failed', err, t, retention_ms)
          told[#told + 1] = id; told[#told + 1] = model_of(job[3]); told[#told + 1] = 'failed'
        else
          if is_new then redis.call('HSET', key, 'attempts', job[5] + 1, 'charged_us', now_us(), 'alone', '1') end
          told[#told + 1] = id; told[#told + 1] = model_of(job[3]); told[#told + 1] = 'requeued'
        end
      end
      if redis.call('HGET', key, 'status') ~= 'failed' then
        local rest = start .. ':' .. length
        if job[2] ~= '' then rest = rest .. ';' .. job[2] end
        redis.call('HSET', key, 'queued', rest)
        redis.call('ZADD', P .. 'lane:' .. job[3], job[4], id)
        redis.call('HINCRBY', P .. 'lane-images', job[3], length)
        index_lane(job[3])
        wake(model_of(job[3]))
      end
    end
  end
  if #left > 0 then
    redis.call('HSET', P .. 'batch:' .. batch, 'parts', table.concat(left, ';'))
  else
    redis.call('ZREM', P .. 'leases', batch)
    redis.call('DEL', P .. 'batch:' .. batch)
  end
  return told
end
