//! The programs that people use on the Internet, against real servers, by name, over IPv4 and IPv6.

use vdens_tests::{Lab, PATIENCE, Session, need, wait_until};

use crate::nat_internet::Internet;

/// A shell behind `nat://`, whose names come from the test's Internet.
fn session<'lab>(lab: &'lab Lab, net: &Internet<'_>) -> Session<'lab> {
    lab.vdens(["--auto", "nat://dns=192.0.2.1", "sh"])
        .inside(&net.host)
        .session()
}

#[test]
fn curl_and_wget() {
    need!("root", "python3", "dnsmasq", "curl", "wget");
    let lab = Lab::new();
    let net = Internet::new(&lab);
    lab.sh("head -c 5000000 /dev/urandom >www/file").ok();
    let sum = lab.sh("sha256sum <www/file").ok();
    let session = session(&lab, &net);
    for fetch in ["curl -sSf", "wget -qO-"] {
        for family in ["-4", "-6"] {
            let page = session.ok(&format!("{fetch} {family} http://server.test:8000/page"));
            assert_eq!(page, "the page", "{fetch} {family}");
            let got = session.ok(&format!(
                "{fetch} {family} http://server.test:8000/file | sha256sum"
            ));
            assert_eq!(got, sum, "{fetch} {family}");
        }
    }
    let (status, said) = session.run("curl -sS http://nothing.test:8000/");
    assert_eq!(
        status, 6,
        "curl's status for a name that is not there: {said}"
    );
    assert_eq!(session.exit(0).code(), Some(0));
}

#[test]
fn ssh() {
    need!("root", "python3", "dnsmasq", "ssh", "ssh-keygen", "sshd");
    let lab = Lab::new();
    let net = Internet::new(&lab);
    lab.sh("cd; for key in host mine; do ssh-keygen -q -t ed25519 -N '' -f $key; done")
        .ok();
    let home = lab.home().display().to_string();
    let configuration = lab.write(
        "sshd_config",
        format!(
            "Port 2222\nHostKey {home}/host\nAuthorizedKeysFile {home}/mine.pub\n\
            StrictModes no\nUsePAM no\nPidFile none\nPasswordAuthentication no\n"
        ),
    );
    // An ordinary user's server lets this user in.
    let server = lab
        .command("/usr/sbin/sshd", ["-D", "-e", "-f", &configuration])
        .inside(&net.far)
        .spawn();
    wait_until("sshd listens", PATIENCE, || {
        server.stderr().matches("Server listening").count() == 2
    });
    let session = session(&lab, &net);
    let user = &lab.user().name;
    let ssh = format!(
        "ssh -F /dev/null -p 2222 -i ~/mine -o StrictHostKeyChecking=no -o LogLevel=ERROR \
        -o UserKnownHostsFile=/dev/null -o BatchMode=yes {user}@server.test"
    );
    for (family, seen) in [("-4", "192.0.2.2"), ("-6", "2001:db8::2")] {
        let said = session.ok(&format!("{ssh} {family} 'echo from $SSH_CONNECTION' 2>&-"));
        assert!(said.starts_with(&format!("from {seen} ")), "{said}");
        let said = session.ok(&format!(
            "head -c 3000000 /dev/urandom >~/sent
            sha256sum <~/sent; {ssh} {family} sha256sum <~/sent 2>&-
            {ssh} {family} cat <~/sent 2>&- | sha256sum"
        ));
        let sums: Vec<_> = said.lines().collect();
        assert_eq!(sums.len(), 3, "{said}");
        assert!(sums.iter().all(|sum| *sum == sums[0]), "{said}");
    }
    assert_eq!(session.exit(0).code(), Some(0));
}

#[test]
fn dig() {
    need!("root", "python3", "dnsmasq", "dig");
    let lab = Lab::new();
    let net = Internet::new(&lab);
    let session = session(&lab, &net);
    for at in ["", "@10.0.2.3", "@fd76:6465:6e73::3"] {
        for how in ["+notcp", "+tcp"] {
            for (kind, answer) in [("A", "198.51.100.1"), ("AAAA", "2001:db8::1")] {
                let ask = format!("dig {at} {how} +short server.test {kind}");
                assert_eq!(session.ok(&ask).trim(), answer, "{ask}");
            }
        }
        let said = session.ok(&format!("dig {at} nothing.test"));
        assert!(said.contains("status: NXDOMAIN"), "{said}");
        // What does not fit comes truncated, and whole when it is asked for by TCP.
        let said = session.ok(&format!("dig {at} +noedns +ignore long.test TXT"));
        assert!(said.contains("flags: qr aa tc rd"), "{said}");
        let said = session.ok(&format!("dig {at} +short long.test TXT"));
        assert_eq!(said.lines().count(), 40, "{said}");
    }
    assert_eq!(session.exit(0).code(), Some(0));
}

#[test]
fn apt() {
    need!("root", "python3", "dnsmasq", "apt-get");
    let lab = Lab::new();
    let net = Internet::new(&lab);
    lab.sh("cd www; head -c 500000 /dev/urandom >thing.deb
        cat >Packages <<END
Package: thing
Version: 1.0
Architecture: all
Maintainer: nobody
Filename: ./thing.deb
Size: 500000
SHA256: $(sha256sum <thing.deb | cut -c -64)
Description: a thing
END
        cd; mkdir -p apt/etc/apt apt/var/lib/apt/lists/partial apt/var/cache/apt/archives/partial
        : >apt/status
        echo 'deb [trusted=yes] http://server.test:8000 ./' >apt/etc/apt/sources.list")
        .ok();
    let session = session(&lab, &net);
    for family in ["4", "6"] {
        let options = format!(
            "-q -o Dir=$HOME/apt -o Dir::State::status=$HOME/apt/status -o Dir::Bin::methods=/usr/lib/apt/methods \
            -o APT::Sandbox::User=root -o Acquire::Languages=none -o Acquire::ForceIPv{family}=true \
            -o Acquire::http::Proxy=false"
        );
        session.ok(&format!(
            "cd; apt-get {options} update && apt-get {options} download thing && \
            cmp thing_1.0_all.deb {}/thing.deb && rm -r thing_1.0_all.deb apt/var/lib/apt/lists/*",
            net.www
        ));
    }
    assert_eq!(session.exit(0).code(), Some(0));
}

#[test]
fn git_over_http() {
    need!("root", "python3", "dnsmasq", "git");
    let lab = Lab::new();
    let net = Internet::new(&lab);
    let git = "git -c user.name=me -c user.email=me@test";
    lab.sh(&format!(
        "cd; git init -q work; cd work
        for n in 1 2 3; do head -c 100000 /dev/urandom >file; git add file; {git} commit -qm change-$n; done
        git clone -q --bare . {www}/repo.git; cd {www}/repo.git; git update-server-info",
        www = net.www
    ))
    .ok();
    let session = session(&lab, &net);
    for name in ["server4.test", "server6.test"] {
        let said = session.ok(&format!(
            "cd; git clone -q http://{name}:8000/repo.git {name}
            git -C {name} fsck && git -C {name} log --format=%s && cmp work/file {name}/file"
        ));
        assert_eq!(said.trim(), "change-3\nchange-2\nchange-1");
    }
    assert_eq!(session.exit(0).code(), Some(0));
}
