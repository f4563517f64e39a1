-- Notices that are due, under a lease. Those of jobs that are gone leave the list: without a word if one was deleted.
-- Returns {job, event, webhook or "" of one that is no longer kept, job, ...}.
-- ARGV: most of them, lease [ms]
local t, told = now(), {}
for _, notice in ipairs(redis.call('ZRANGE', P .. 'notices', '-inf', t, 'BYSCORE', 'LIMIT', 0, ARGV[1])) do
  local id, event = string.match(notice, '^(.*):(%a+)$')
  local webhook = redis.call('HGET', P .. 'job:' .. id, 'webhook')
  if webhook then
    redis.call('ZADD', P .. 'notices', t + ARGV[2], notice)
  else
    redis.call('ZREM', P .. 'notices', notice)
  end
  if webhook or redis.call('EXISTS', P .. 'gone:' .. id) == 1 then
    told[#told + 1] = id; told[#told + 1] = event; told[#told + 1] = webhook or ''
  end
end
return told
