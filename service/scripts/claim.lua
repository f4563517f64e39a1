-- Claim images of the lane that is due first, or has waited longest, across jobs, splitting large ones; as many as the
-- worker has room for of that model. A job that must run alone is claimed by a worker with empty hands.
-- A repeated call answers as the first. Returns {} when nothing waits, {"alone"} when empty hands are needed, else
-- {lane, parts, 1 if alone else 0, 1 if more waits for these models else 0, job, request, submitted [ms], traceparent,
-- job, ...}.
-- ARGV: batch, worker, lease [ms], below (evaluations per image; 0 = any), the oldest (1 or 0), hands are empty (1 or 0),
--       favourite model, by how much its lanes come earlier [us], model, room, model, room, ...
local batch, below, oldest = ARGV[1], tonumber(ARGV[4]), ARGV[5] == '1'
local AHEAD = 8  -- lanes of a model that are looked at for shorter jobs
local last = oldest and -1 or below > 0 and AHEAD - 1 or 0

-- Whether something waits for one of the models; tokens that would wake workers for nothing are taken back.
local function more()
  local found = 0
  for i = 9, #ARGV, 2 do
    if redis.call('EXISTS', P .. 'lanes:' .. ARGV[i]) == 1 then found = 1 else redis.call('DEL', P .. 'wake:' .. ARGV[i]) end
  end
  return found
end

local function answer(lane, text, alone)
  local told, seen = {lane, text, alone, more()}, {}
  for _, part in ipairs(parts(text)) do
    if not seen[part[1]] then
      seen[part[1]] = true
      local job = redis.call('HMGET', P .. 'job:' .. part[1], 'request', 'begins_ms', 'traceparent')
      told[#told + 1] = part[1]
      told[#told + 1] = job[1] or ''
      told[#told + 1] = job[2] or '0'
      told[#told + 1] = job[3] or ''
    end
  end
  return told
end

local function head_of(lane)
  return redis.call('ZRANGE', P .. 'lane:' .. lane, 0, 0)[1]
end

local function is_short(lane)
  return below == 0 or tonumber(redis.call('HGET', P .. 'job:' .. head_of(lane), 'evaluations')) < below
end

local before = redis.call('HMGET', P .. 'batch:' .. batch, 'lane', 'parts', 'alone')
if before[1] then return answer(before[1], before[2], tonumber(before[3])) end

local lane, due, room
for i = 9, #ARGV, 2 do
  local heads = redis.call('ZRANGE', P .. 'lanes:' .. ARGV[i], 0, last, 'WITHSCORES')
  for k = 1, #heads, 2 do
    local score = tonumber(oldest and redis.call('HGET', P .. 'job:' .. head_of(heads[k]), 'begins_ms') or heads[k + 1])
    if ARGV[i] == ARGV[7] and not oldest then score = score - ARGV[8] end
    if (not due or score < due) and is_short(heads[k]) then
      lane, due, room = heads[k], score, tonumber(ARGV[i + 1])
    end
  end
end
if not lane then return {} end
local alone = redis.call('HGET', P .. 'job:' .. head_of(lane), 'alone') and 1 or 0
if alone == 1 and ARGV[6] == '0' then return {'alone'} end

local t, taken, claimed = now(), {}, 0
while claimed < room do
  local id = head_of(lane)
  if not id then break end
  local key = P .. 'job:' .. id
  local job = redis.call('HMGET', key, 'status', 'queued', 'alone', 'webhook')
  if job[3] and claimed > 0 then break end
  local rest = {}
  for _, range in ipairs(ranges(job[2])) do
    local start, length = range[1], range[2]
    local share = math.min(length, room - claimed)
    if share > 0 then taken[#taken + 1] = id .. ':' .. start .. ':' .. share end
    if share < length then rest[#rest + 1] = (start + share) .. ':' .. (length - share) end
    claimed = claimed + share
  end
  redis.call('HSET', key, 'queued', table.concat(rest, ';'))
  if job[1] == 'queued' then
    redis.call('HSET', key, 'status', 'running', 'started_ms', t)
    redis.call('HINCRBY', P .. 'load', 'running:' .. model_of(lane), 1)
    notify(id, job[4], 'started', t)
    publish(id, 'running')
  end
  if #rest == 0 then redis.call('ZREM', P .. 'lane:' .. lane, id) end
  if job[3] then break end
end
redis.call('HINCRBY', P .. 'lane-images', lane, -claimed)
index_lane(lane)
local text = table.concat(taken, ';')
redis.call('HSET', P .. 'batch:' .. batch,
  'worker', ARGV[2], 'lane', lane, 'parts', text, 'alone', alone, 'claimed_us', now_us())
redis.call('ZADD', P .. 'leases', t + ARGV[3], batch)
return answer(lane, text, alone)
