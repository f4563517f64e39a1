-- Prolong the lease of a batch and note how far it is. Returns 1, or 0 when the batch is no longer the worker's.
-- ARGV: batch, lease [ms], evaluations done per image
local batch = ARGV[1]
if not redis.call('ZSCORE', P .. 'leases', batch) then return 0 end
redis.call('ZADD', P .. 'leases', now() + ARGV[2], batch)
for _, part in ipairs(parts(redis.call('HGET', P .. 'batch:' .. batch, 'parts'))) do
  local key = P .. 'job:' .. part[1]
  if redis.call('HGET', key, 'status') == 'running' then
    redis.call('HSET', key, 'progress:' .. batch, ARGV[3] * part[3])
    publish(part[1], 'progress')
  end
end
return 1
