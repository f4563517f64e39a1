-- Prolong the leases of batches and note how far their jobs are.
-- Returns the batches that are no longer the worker's, and the jobs no longer open: {{batch, ...}, {job, ...}}.
-- ARGV: lease [ms], {batch: {job: evaluations done}}
local t, lost, closed = now(), {}, {}
for batch, jobs in pairs(cjson.decode(ARGV[2])) do
  if redis.call('ZSCORE', P .. 'leases', batch) then
    redis.call('ZADD', P .. 'leases', t + ARGV[1], batch)
    for id, done in pairs(jobs) do
      local key = P .. 'job:' .. id
      local status = redis.call('HGET', key, 'status')
      if not is_open(status) then
        closed[#closed + 1] = id
      elseif tonumber(redis.call('HGET', key, 'progress:' .. batch) or '0') < done then
        redis.call('HSET', key, 'progress:' .. batch, done)
        publish(id, 'progress')
      end
    end
  else
    lost[#lost + 1] = batch
  end
end
return {lost, closed}
