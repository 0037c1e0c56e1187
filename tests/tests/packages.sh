# Runs as root in a bare Debian (tests/debian.sh): /files has the packages and README's scripts.
as_alice() { setpriv --reuid alice --regid alice --init-groups env HOME=/home/alice USER=alice "$@"; }
alice() { as_alice bash -ec "cd; $1"; }
own=/usr/lib/vdens/bin

# Everything but logs and dpkg's own lists.
everything() {
    find / -xdev \( -path /proc -o -path /sys -o -path /dev -o -path /tmp -o -path /run -o -path /files \) -prune \
        -o -type d -printf '%p %m %u %g\n' -o -printf '%p %m %u %g %s %l\n' |
        grep -v -e '^/var/log' -e '^/var/lib/dpkg' -e '^/var/lib/apt' -e '^/var/cache' | sort
}
processes() { for directory in /proc/[0-9]*; do tr '\0' ' ' < "$directory/cmdline" 2>/dev/null || :; echo; done | grep '[v]de' || :; }
traceless() {
    everything | diff /tmp/before - || { echo "this was left or changed"; exit 1; }
    [ -z "$(processes)" ] || { echo "these were left:"; processes; exit 1; }
    [ -z "$(alice 'ls')" ] || { echo "in the home:"; alice 'ls'; exit 1; }
}
everything > /tmp/before

echo "== beside Debian's vdens and vdeplug"
dpkg -i /files/vdens-rs_*.deb
dpkg --verify
alice "$own/vdens --version"
alice 'test "$(realpath "$(command -v vdectl)" "$(command -v vdens)")" = "/usr/lib/vdens/bin/vdectl
/usr/bin/vdens"'
alice 'vdectl doctor' > /tmp/doctor || { cat /tmp/doctor; exit 1; }
! grep -v -e '^ok ' -e '^note ' /tmp/doctor
grep '^note *PATH: vdens is /usr/bin/vdens, another program' /tmp/doctor
alice "PATH=$own:\$PATH vdectl doctor" | grep '^ok *PATH: '
[ -f /usr/share/zsh/vendor-completions/_vdens ]
grep "^ok .* /usr/lib/vdens/plugins: plugins in it: $(ls /usr/lib/vdens/plugins/*.so | wc -l)$" /tmp/doctor
# One end of a cable is VDE's, whose vdens may neither end with its
# command nor remove its sockets.
alice "mkdir theirs; cd theirs
    $own/vdens --addr 10.0.0.1/24 ptp://\$PWD/cable sleep 60 &
    vdens ptp://\$PWD/cable sh -ec '
        ip address add 10.0.0.2/24 dev vde0; ip link set vde0 up
        ping -c 1 -w 50 10.0.0.1; touch answered; exec sleep 60' &
    until [ -e answered ] || [ -z \"\$(jobs -r)\" ]; do sleep 0.1; done
    kill -9 %2; kill %1; wait || :
    rm answered; cd; rm -r theirs"

echo "== README"
for script in /files/readme/*.sh; do
    echo "-- $script"
    alice "mkdir readme; cd readme; export PATH=$own:\$PATH
        trap 'kill \$(jobs -p) 2>/dev/null || :; wait' EXIT
        . $script"
    rm -r /home/alice/readme
done

echo "== plugins of one's own"
try_plugin() { # SCHEME FILE
    alice "export PATH=$own:\$PATH
        mkdir -p .local/share/vdens/plugins
        cp $2 .local/share/vdens/plugins
        vdectl plugin check $1 $1://4000
        vdens --addr 10.0.0.1/24 $1://4000 sleep 60 &
        vdens --addr 10.0.0.2/24 $1://4000 ping -c 1 -w 50 10.0.0.1
        kill %1; wait || :
        rm -r .local"
}
try_plugin mycable /files/libvdens_mycable.so
# The crate that was built elsewhere is what vdectl writes here, where no source tree is.
alice "$own/vdectl plugin new mycrate"
diff -r /home/alice/mycrate /files/mycrate
try_plugin mycrate /files/libvdens_mycrate.so
rm -r /home/alice/mycrate
if command -v cc; then
    alice "$own/vdectl plugin new --language c here
        cd here
        rm vdens-plugin.h
        cc -std=c11 -Wall -Wextra -Werror -O2 -fPIC -shared \$(pkg-config --cflags vdens-plugin) -o libvdens_here.so here.c"
    try_plugin here here/libvdens_here.so
    rm -r /home/alice/here
fi

echo "== the Internet, which is one server"
ip address add 192.0.2.1/24 dev lo
perl -MIO::Socket::INET -e '
    my $server = IO::Socket::INET->new(LocalAddr => "192.0.2.1:8080", Listen => 5) or die;
    print STDERR "listening\n";
    while (my $client = $server->accept) { print $client "hello\n"; close $client }' 2> /tmp/server &
server=$!
until grep -q listening /tmp/server 2>/dev/null; do sleep 0.05; done
[ "$(alice "$own/vdens --auto nat:// bash -c 'cat < /dev/tcp/192.0.2.1/8080'")" = hello ]
kill $server
wait $server || :

echo "== AppArmor"
profile=/usr/share/vdens/apparmor/usr.lib.vdens
if [ -e /etc/apparmor.d/abi/4.0 ]; then
    [ "$(realpath /etc/apparmor.d/usr.lib.vdens)" = $profile ]
    [ "$(apparmor_parser --skip-kernel-load --skip-cache --names $profile)" = usr.lib.vdens ]
    apparmor_parser --skip-kernel-load --skip-cache --debug $profile | grep -q '^userns,'
    # What the administrator has put there stays.
    rm /etc/apparmor.d/usr.lib.vdens
    touch /etc/apparmor.d/usr.lib.vdens
    dpkg -i /files/vdens-rs_*.deb
    [ ! -L /etc/apparmor.d/usr.lib.vdens ]
    rm /etc/apparmor.d/usr.lib.vdens
    dpkg -i /files/vdens-rs_*.deb
    [ -L /etc/apparmor.d/usr.lib.vdens ]
else
    [ ! -e /etc/apparmor.d/usr.lib.vdens ]
    echo "AppArmor $(dpkg-query -W -f '${Version}' apparmor) cannot parse the profile"
fi

echo "== purged, and Debian's are intact"
dpkg --purge vdens-rs
traceless
dpkg --verify
alice "vdens no true"

echo "== in the place of Debian's"
apt-get install -y --no-install-recommends /files/vdens-rs_*.deb /files/vdens-rs-names_*.deb
! dpkg --status vdens 2>/dev/null | grep -q 'ok installed'
alice 'vdens --version; vde_plug --version'
alice 'vdens --addr 10.0.0.1/24 ptp://cable sleep 60 &
    vdens --addr 10.0.0.2/24 ptp://cable ping -c 1 -w 50 10.0.0.1
    kill %1; wait || :'
dpkg --purge vdens-rs-names vdens-rs
find / -xdev \( -path /proc -o -path /files -o -path /tmp -o -path /var/lib/dpkg -o -path /var/log \) -prune -o -name '*vdens*' -print |
    while read -r path; do
        dpkg --search "$path" || { echo "this was left: $path"; exit 1; }
    done
echo "== done"
