-- End the leases of a worker that is known to be dead, for `reap` to find. Returns how many there were.
-- ARGV: worker
local ended = 0
for _, batch in ipairs(redis.call('ZRANGE', P .. 'leases', 0, -1)) do
  if redis.call('HGET', P .. 'batch:' .. batch, 'worker') == ARGV[1] then
    redis.call('ZADD', P .. 'leases', 0, batch)
    ended = ended + 1
  end
end
return ended
