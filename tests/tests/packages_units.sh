# Runs the units of an installation in a service manager of the user's, as root in a mount namespace
# of its own. $LIBRARY is the installation's lib/vdens, $UNITS has the units, $PLACE is a directory
# of the user's, $ID a name for a control group, $RUN_AS the user.
uid=$(id -u "$RUN_AS")
mount -t tmpfs tmpfs /run
mkdir -p /run/systemd/system "/run/user/$uid"
chown "$RUN_AS" "/run/user/$uid"
chmod 700 "/run/user/$uid"
mount -t cgroup2 cgroup2 /sys/fs/cgroup
group=/sys/fs/cgroup/$ID
mkdir "$group"
echo $$ > "$group/cgroup.procs"
chown -R "$RUN_AS" "$group"
user() {
    setpriv --reuid "$RUN_AS" --regid "$RUN_AS" --clear-groups env -i HOME="$PLACE" USER="$RUN_AS" VDENS_LAB="$VDENS_LAB" \
        XDG_RUNTIME_DIR="/run/user/$uid" PATH="$LIBRARY/bin:/usr/bin:/bin" "$@"
}
user mkdir -p "$PLACE/.config/systemd/user" "$PLACE/.config/vdens/labs"
user cp "$UNITS"/vdens-*@.service "$PLACE/.config/systemd/user"
cat > "$PLACE/.config/vdens/labs/two.toml" <<'END'
[nodes.a]
[nodes.b]
[[links]]
ends = ["a:eth0=10.0.0.1/24", "b:eth0=10.0.0.2/24"]
END
user timeout 300 /usr/lib/systemd/systemd --user &
manager=$!
control() { user systemctl --user "$@"; }
end() {
    control exit || kill $manager || :
    wait $manager || :
    echo $$ > /sys/fs/cgroup/cgroup.procs
    find "$group" -depth -type d -exec rmdir {} +
}
trap end EXIT
for _ in $(seq 600); do
    [ ! -S "/run/user/$uid/systemd/private" ] || break
    sleep 0.1
done
control start vdens-uplink@lan
control is-active vdens-switch@lan vdens-uplink@lan
switch=vde:///run/user/$uid/vdens-switch/lan
user vdens --auto "$switch" ip -brief address show dev vde0 | grep ' 10\.0\.2\.'
control start vdens-lab@two
user vdectl lab exec a ping -c 1 -w 50 10.0.0.2
printf '[nodes.c]\n' >> "$PLACE/.config/vdens/labs/two.toml"
control reload vdens-lab@two
user vdectl lab exec c true
control stop vdens-lab@two
! user vdectl lab exec a true
control stop vdens-switch@lan
! control is-active vdens-uplink@lan
[ -z "$(control --failed --plain --no-legend --no-pager)" ]
[ ! -e "/run/user/$uid/vdens-switch/lan" ]
! user vdectl status
echo "units: done"
