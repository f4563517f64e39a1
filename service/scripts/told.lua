-- Note how it went to tell of an event: the notice is done with, or due again after a while.
-- ARGV: job, event, what the job shows of it, wait [ms] or "" for no more
local key, notice = P .. 'job:' .. ARGV[1], ARGV[1] .. ':' .. ARGV[2]
if ARGV[4] == '' then
  redis.call('ZREM', P .. 'notices', notice)
else
  redis.call('ZADD', P .. 'notices', 'XX', now() + ARGV[4], notice)
end
if redis.call('EXISTS', key) == 1 then redis.call('HSET', key, 'webhook:' .. ARGV[2], ARGV[3]) end
