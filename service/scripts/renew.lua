-- Prolong the leases of batches and note how far their jobs are.
-- Returns the batches that are no longer the worker's, and the jobs no longer open: {{batch, ...}, {job, ...}}.
-- ARGV: lease [ms], {batch: {job: evaluations done}}, {job: {first image of a part: "evaluation:sigma" to be seen}}
local t, lost, closed, shown = now(), {}, {}, cjson.decode(ARGV[3])

-- Whether there is more of an open job, or more to be seen of it, than was noted before.
local function note(id, batch, done)
  local key, is_news = P .. 'job:' .. id, false
  if tonumber(redis.call('HGET', key, 'progress:' .. batch) or '0') < done then
    redis.call('HSET', key, 'progress:' .. batch, done)
    is_news = true
  end
  for start, text in pairs(shown[id] or {}) do
    if redis.call('HGET', key, 'preview:' .. start) ~= text then
      redis.call('HSET', key, 'preview:' .. start, text)
      is_news = true
    end
  end
  return is_news
end

for batch, jobs in pairs(cjson.decode(ARGV[2])) do
  if redis.call('ZSCORE', P .. 'leases', batch) then
    redis.call('ZADD', P .. 'leases', t + ARGV[1], batch)
    for id, done in pairs(jobs) do
      if not is_open(redis.call('HGET', P .. 'job:' .. id, 'status')) then
        closed[#closed + 1] = id
      elseif note(id, batch, done) then
        publish(id, 'progress')
      end
    end
  else
    lost[#lost + 1] = batch
  end
end
return {lost, closed}
