-- Claim up to `room` images of the lane that has waited longest, across jobs, splitting large ones.
-- A repeated call answers as the first. Returns {} when nothing waits, else {lane, parts, job, request, job, ...}.
-- ARGV: batch, worker, room, lease [ms], model, model, ...
local batch, room = ARGV[1], tonumber(ARGV[3])

local function answer(lane, text)
  local told, seen = {lane, text}, {}
  for _, part in ipairs(parts(text)) do
    if not seen[part[1]] then
      seen[part[1]] = true
      told[#told + 1] = part[1]
      told[#told + 1] = redis.call('HGET', P .. 'job:' .. part[1], 'request') or ''
    end
  end
  return told
end

local before = redis.call('HMGET', P .. 'batch:' .. batch, 'lane', 'parts')
if before[1] then return answer(before[1], before[2]) end

local lane, oldest
for i = 5, #ARGV do
  local head = redis.call('ZRANGE', P .. 'lanes:' .. ARGV[i], 0, 0, 'WITHSCORES')
  if #head > 0 and (not oldest or tonumber(head[2]) < oldest) then
    lane, oldest = head[1], tonumber(head[2])
  end
end
if not lane then return {} end

local t, taken, claimed = now(), {}, 0
while claimed < room do
  local id = redis.call('ZRANGE', P .. 'lane:' .. lane, 0, 0)[1]
  if not id then break end
  local key = P .. 'job:' .. id
  local job = redis.call('HMGET', key, 'status', 'queued', 'alone')
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
    publish(id, 'running')
  end
  if #rest == 0 then redis.call('ZREM', P .. 'lane:' .. lane, id) end
  if job[3] then break end
end
redis.call('HINCRBY', P .. 'lane-images', lane, -claimed)
index_lane(lane)
local text = table.concat(taken, ';')
redis.call('HSET', P .. 'batch:' .. batch, 'worker', ARGV[2], 'lane', lane, 'parts', text, 'claimed_ms', t)
redis.call('ZADD', P .. 'leases', t + ARGV[4], batch)
return answer(lane, text)
