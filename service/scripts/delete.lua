-- Cancel a job that has not ended, and forget it; nobody is told any more of it. Returns 1, or 0 when there is none.
-- ARGV: id, retention [ms]
local id, key = ARGV[1], P .. 'job:' .. ARGV[1]
local job = redis.call('HMGET', key, 'status', 'owner')
if not job[1] then return 0 end
redis.call('HDEL', key, 'webhook')
if is_open(job[1]) then cancel(id, now(), ARGV[2]) end
redis.call('DEL', key, P .. 'gone:' .. id)
redis.call('ZREM', P .. 'jobs:' .. (job[2] or ''), id)
publish(id, 'deleted')
return 1
