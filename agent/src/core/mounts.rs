//! Decides which layers are under root file systems that are mounted.
//!
//! In: the text of a `/proc/PID/mountinfo` (proc(5)). Out: for each overlay the layers of the store under it, the lowest first. The
//! kernel's word, because it stands whatever records were lost.

/// The layers, in hexadecimal, under each mounted overlay that has any.
pub fn overlays(mountinfo: &str) -> Vec<Vec<String>> {
    let of_line = |line: &str| {
        let (_, after) = line.split_once(" - ")?;
        let mut fields = after.split(' ');
        let (kind, _source, options) = (fields.next()?, fields.next()?, fields.next()?);
        let mut layers: Vec<String> = if kind == "overlay" { lower_dirs(options).filter_map(layer).collect() } else { Vec::new() };
        // The kernel names the uppermost first.
        layers.reverse();
        (!layers.is_empty()).then_some(layers)
    };
    mountinfo.lines().filter_map(of_line).collect()
}

/// One option for each since Linux 6.8, before that one for all, with colons between them.
fn lower_dirs(options: &str) -> impl Iterator<Item = &str> {
    // A comma in a path is shown as an octal escape.
    options.split(',').flat_map(|option| {
        let all = option.strip_prefix("lowerdir+=").or_else(|| option.strip_prefix("lowerdir=")).unwrap_or_default();
        all.split(':').filter(|path| !path.is_empty())
    })
}

/// The layer's name if the path is that of one; the directories above may have several names, so they are not compared.
fn layer(path: &str) -> Option<String> {
    let (dir, name) = path.rsplit_once('/')?;
    let is_hex = name.len() == 64 && name.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    (dir.ends_with("/layers") && is_hex).then(|| name.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers_are_read_from_both_forms_the_lowest_first() {
        let (a, b) = ("a".repeat(64), "b".repeat(64));
        let text = format!(
            "1 2 0:3 / / rw - ext4 /dev/x rw,lowerdir=/s/layers/{a}\n\
             4 2 0:5 / /r rw,relatime shared:1 - overlay overlay rw,lowerdir+=/s/images/layers/{b},lowerdir+=/s\\040x/layers/{a},upperdir=/u\n\
             6 2 0:7 / /r rw - overlay overlay rw,lowerdir=/s/layers/{b}:/s/layers/{a},upperdir=/u,workdir=/w\n\
             8 2 0:9 / /r rw - overlay overlay rw,lowerdir=/other/{a}:/s/layers/short,upperdir=/layers/{a}\n\
             broken\n"
        );
        assert_eq!(overlays(&text), [[a.clone(), b.clone()], [a, b]]);
    }
}
