import hashlib
import os
import struct

import numpy as np
import pytest

from hessian_lab.errors import InputError, ResourceError
from hessian_lab.probe import memory
from hessian_lab.signal import Source
from hessian_lab.signals import mesh_files
from hessian_lab.signals.mesh_files import WRITERS, is_mesh_path, mesh_of_bytes, read_mesh
from tests.signals.solids import CUBE, SQUARES, box, data_file, icosphere

TRIANGLES = [part for a, b, c, d in SQUARES for part in ((a, b, c), (a, c, d))]
SOURCE = Source("thing", "", "")


def lines(*parts, newline="\n"):
    return newline.join(parts).encode()


def obj(newline="\n"):
    vertices = [f"v {x} {y} {z}" for x, y, z in CUBE]
    faces = ["f " + " ".join(str(i + 1) for i in square) for square in SQUARES]
    return lines("# a cube", *vertices, *faces, "", newline=newline)


def off(newline="\n", head=("OFF", "8 6 12")):
    vertices = [f"{x} {y} {z}" for x, y, z in CUBE]
    faces = ["4 " + " ".join(map(str, square)) for square in SQUARES]
    return lines(*head, *vertices, *faces, "", newline=newline)


def ply_header(kind, vertex=("float x", "float y", "float z"), faces=6, lists="uchar int"):
    return [
        "ply",
        f"format {kind} 1.0",
        "comment a cube",
        "element vertex 8",
        *[f"property {one}" for one in vertex],
        f"element face {faces}",
        f"property list {lists} vertex_indices",
        "end_header",
    ]


def ply(newline="\n"):
    vertices = [f"{x} {y} {z}" for x, y, z in CUBE]
    faces = ["4 " + " ".join(map(str, square)) for square in SQUARES]
    return lines(*ply_header("ascii"), *vertices, *faces, "", newline=newline)


def binary_ply(order, polygons=SQUARES, newline="\n"):
    kind = "binary_little_endian" if order == "<" else "binary_big_endian"
    body = b"".join(struct.pack(order + "3f", *vertex) for vertex in CUBE)
    for one in polygons:
        body += struct.pack(f"{order}B{len(one)}i", len(one), *one)
    return lines(*ply_header(kind, faces=len(polygons)), "", newline=newline) + body


def stl(newline="\n"):
    facets = [
        part
        for triangle in TRIANGLES
        for part in (
            "  facet normal 0 0 0",
            "    outer loop",
            *("      vertex {:e} {:e} {:e}".format(*CUBE[corner]) for corner in triangle),
            "    endloop",
            "  endfacet",
        )
    ]
    return lines("solid vertex of a cube", *facets, "endsolid cube", "", newline=newline)


def binary_stl(title=b"a cube", trailing=b""):
    facets = [
        struct.pack("<12fH", 0, 0, 0, *np.ravel(CUBE[list(triangle)]), 0) for triangle in TRIANGLES
    ]
    return title.ljust(80) + struct.pack("<I", len(facets)) + b"".join(facets) + trailing


FILES = {
    "obj": (".obj", obj()),
    "obj, CRLF": (".obj", obj("\r\n")),
    "off": (".off", off()),
    "off, CRLF": (".off", off("\r\n")),
    "ply": (".ply", ply()),
    "ply, CRLF": (".ply", ply("\r\n")),
    "ply, little-endian": (".ply", binary_ply("<")),
    "ply, big-endian": (".ply", binary_ply(">")),
    "ply, little-endian, CRLF": (".ply", binary_ply("<", newline="\r\n")),
    "ply, mixed": (".ply", binary_ply("<", [*SQUARES[:4], *TRIANGLES[8:]])),
    "ply, mixed, small first": (".ply", binary_ply(">", [*TRIANGLES[:6], *SQUARES[3:]])),
    "stl": (".stl", stl()),
    "stl, CRLF": (".stl", stl("\r\n")),
    "stl, binary": (".stl", binary_stl()),
    "stl, binary, called solid": (".stl", binary_stl(b"solid cube")),
    "stl, binary, trailing": (".stl", binary_stl(trailing=b"\0" * 7)),
}
each_file = pytest.mark.parametrize(("ending", "data"), FILES.values(), ids=FILES)


def read(ending, data):
    return mesh_of_bytes(data, ending, SOURCE)


def assert_is_cube(mesh):
    assert len(mesh.vertices) == 8
    assert {tuple(vertex) for vertex in mesh.vertices} == {tuple(vertex) for vertex in CUBE}
    assert len(mesh.faces) == 12
    assert mesh.volume == pytest.approx(8, rel=1e-14)
    assert mesh.edges.oriented
    assert mesh.num_dropped == 0


# What is read.


@each_file
def test_every_format_holds_the_same_cube(ending, data):
    assert_is_cube(read(ending, data))


@each_file
def test_a_file_is_told_apart_by_its_ending(ending, data, tmp_path):
    for suffix in (ending, ending.upper()):
        path = tmp_path / f"cube{suffix}"
        path.write_bytes(data)
        assert is_mesh_path(path)
        mesh = read_mesh(path)
        assert_is_cube(mesh)
        assert mesh.source == Source(
            path.name, f"file {path.name}", hashlib.sha256(data).hexdigest()
        )


def test_a_source_can_be_named(tmp_path):
    (tmp_path / "cube.obj").write_bytes(obj())
    source = read_mesh(tmp_path / "cube.obj", name="cube", attribution="nobody, CC0").source
    assert (source.name, source.attribution) == ("cube", "nobody, CC0")


@pytest.mark.parametrize(
    "face",
    [
        "f 1/1 2/2 3/3",
        "f 1//1 2//1 3//1",
        "f 1/1/1 2/2/1 3/3/1",
        "f -3 -2 -1",
        "f -3/1 -2//2 3 # three ways",
        "f 1 2 \\\n 3",
        "\tf  1\t2 3  ",
    ],
)
def test_corners_of_obj_faces(face):
    head = ["\ufeff# BOM", "mtllib a.mtl", "o thing", "v 0 0 0 1.0", "v 1 0 0 .5 .5 .5", "v 0 1 0"]
    data = "\n".join([*head, "vt 0 0", "vn 0 0 1", "g a", "s off", face, "l 1 2"]).encode()
    mesh = read(".obj", data)
    assert mesh.triangles.tolist() == [[[0, 0, 0], [1, 0, 0], [0, 1, 0]]]


def test_negative_obj_indices_count_from_the_line_they_stand_in():
    data = b"v 0 0 0\nv 1 0 0\nv 0 1 0\nf -3 -2 -1\nv 0 0 1\nf -4 -3 -1\n"
    assert read(".obj", data).faces.tolist() == [[0, 1, 2], [0, 1, 3]]


@pytest.mark.parametrize(
    "head",
    [
        ("OFF 8 6 12",),
        ("OFF8 6 0",),
        ("OFF # a cube", "", "# counts", "8 6"),
        ("COFF", "8 6 12"),
        ("NOFF", "8 6 12"),
    ],
)
def test_headers_of_off_files(head):
    assert_is_cube(read(".off", off(head=head)))


def test_colours_of_off_files_are_ignored():
    data = b"COFF\n3 1 0\n0 0 0 255 0 0 255\n1 0 0 0 0 0 1\n0 1 0 9 9 9 9\n3 0 1 2 0.5 0.5 0.5\n"
    assert read(".off", data).faces.tolist() == [[0, 1, 2]]


PLY_BODIES = {
    # Elements and properties that are not asked for, before, between and behind.
    "ascii": b"7 2 5 6\n9 0 0 0 3\n9 1 0 0 3\n9 0 1 0 3\n1 2 0.5 1 3 0 1 2 8\n",
    "binary_little_endian": struct.pack("<iB2h", 7, 2, 5, 6)
    + b"".join(struct.pack("<B3dh", 9, *v, 3) for v in ((0, 0, 0), (1, 0, 0), (0, 1, 0)))
    + struct.pack("<hB2fB3Ib", 1, 2, 0.5, 1, 3, 0, 1, 2, 8),
    "binary_big_endian": struct.pack(">iB2h", 7, 2, 5, 6)
    + b"".join(struct.pack(">B3dh", 9, *v, 3) for v in ((0, 0, 0), (1, 0, 0), (0, 1, 0)))
    + struct.pack(">hB2fB3Ib", 1, 2, 0.5, 1, 3, 0, 1, 2, 8),
}


@pytest.mark.parametrize("kind", PLY_BODIES)
def test_ply_elements_and_properties_that_are_not_asked_for_are_passed_by(kind):
    header = [
        *("ply", f"format {kind} 1.0", "obj_info x", "element camera 1", "property int32 a"),
        *("property list uint8 int16 b", "element nothing 1000000000000", "element vertex 3"),
        *("property uchar red", "property double x", "property float64 y", "property double z"),
        *("property short s", "element face 1", "property int16 flag"),
        *("property list uchar float texcoord", "property list uchar uint vertex_index"),
        *("property char c", "end_header", ""),
    ]
    mesh = read(".ply", lines(*header) + PLY_BODIES[kind])
    assert mesh.triangles.tolist() == [[[0, 0, 0], [1, 0, 0], [0, 1, 0]]]


def test_lists_among_the_vertices_of_a_ply_file_are_passed_by():
    header = [
        *("ply", "format binary_little_endian 1.0", "element vertex 3", "property float x"),
        *("property list uchar int near", "property float y", "property float z"),
        *("element face 1", "property list uchar uchar vertex_indices", "end_header", ""),
    ]
    body = struct.pack("<fBff", 0, 0, 0, 0) + struct.pack("<fBiff", 1, 1, 7, 0, 0)
    body += struct.pack("<fB2iff", 0, 2, 7, 7, 1, 0) + struct.pack("<B3B", 3, 0, 1, 2)
    mesh = read(".ply", lines(*header) + body)
    assert mesh.triangles.tolist() == [[[0, 0, 0], [1, 0, 0], [0, 1, 0]]]


# What is written.


@pytest.mark.parametrize("ending", WRITERS)
def test_what_is_written_is_read_back_with_every_digit(ending):
    mesh = icosphere(2, 1 / 3)
    found = read(ending, WRITERS[ending](mesh))
    assert (found.triangles == mesh.triangles).all()
    assert (found.vertices == mesh.vertices).all()


def test_what_is_written_is_what_the_formats_say():
    mesh = box(2, 2, 2)
    header, _, body = WRITERS[".ply"](mesh).partition(b"end_header\n")
    assert b"element vertex 8\n" in header
    assert b"element face 12\n" in header
    assert struct.unpack_from("<3d", body, 24) == tuple(mesh.vertices[1])
    assert struct.unpack_from("<B3I", body, 8 * 24 + 13) == (3, *mesh.faces[1])
    text = WRITERS[".obj"](mesh).decode().splitlines()
    assert text[0] == "v -1.0 -1.0 -1.0"
    assert text[8] == "f " + " ".join(str(corner + 1) for corner in mesh.faces[0])


@pytest.mark.parametrize(
    ("name", "num_vertices", "num_faces"),
    [("spot_low_resolution.obj", 829, 1654), ("nefertiti-lowres.obj", 35002, 70000)],
)
def test_real_files(name, num_vertices, num_faces):
    mesh = read_mesh(data_file(name))
    assert (len(mesh.vertices), len(mesh.faces)) == (num_vertices, num_faces)
    assert mesh.edges.oriented
    assert mesh.volume > 0


# Refusals.


def assert_refused(ending, data, reason):
    with pytest.raises(InputError) as caught:
        read(ending, data)
    message = str(caught.value)
    assert reason in message, message
    assert message.startswith("mesh must ")
    assert "thing" in message
    assert message.count("\n") == 0
    assert message.endswith(".")


REFUSED = {
    "obj without coordinates": (".obj", b"v 0 0\n", "line 1 must have three coordinates"),
    "obj with words": (".obj", b"v 0 a 0\n", "line 1 must have three coordinates"),
    "obj with a corner that is none": (".obj", obj() + b"f a b c\n", "line 16 must have whole"),
    "obj with a corner 0": (".obj", obj() + b"f 0 1 2\n", "line 16 has a face of vertex 0"),
    "obj with a corner too far back": (".obj", obj() + b"f -9 1 2\n", "a face of vertex -9"),
    "obj with a corner too far on": (".obj", obj() + b"f 9 1 2\n", "a face of vertex 8"),
    "obj with a corner beyond int64": (".obj", obj() + b"f 99999999999999999999 1 2", "beyond all"),
    "obj without faces": (".obj", obj()[:57], "thing has none"),
    "obj of other bytes": (".obj", bytes(range(256)) * 4, "thing has none"),
    "obj with NaN": (".obj", obj() + b"v nan 0 0\n", "NaN or Inf"),
    "obj with Inf": (".obj", obj() + b"v 1e999 0 0\n", "NaN or Inf"),
    "off of another kind": (".off", off(head=("4OFF", "8 6 0")), "does not begin with one of OFF"),
    "off in binary": (".off", off(head=("OFF BINARY", "8 6 0")), "no numbers of vertices"),
    "off without counts": (".off", b"OFF\n", "no numbers of vertices and faces"),
    "off of negative counts": (".off", off(head=("OFF", "-8 6 0")), "no numbers of vertices"),
    "off of many": (".off", off(head=("OFF", "8 999999999999 0")), "and 14 lines follow"),
    "off, truncated": (".off", off()[:-12], "and 13 lines follow"),
    "off with a short face": (".off", off()[:-3] + b"\n", "line 16 says 4 corners and has 3"),
    "off with a negative face": (".off", off()[:-11] + b"\n-4 1 2 3 4", "corners"),
    "off with a far corner": (".off", off()[:-2] + b"8\n", "a face of vertex 8"),
    "ply that is none": (".ply", b"nothing", "does not begin with 'ply'"),
    "ply without an end": (".ply", b"ply\nformat ascii 1.0\n", "its header has no end"),
    "ply of another format": (".ply", ply().replace(b"ascii", b"utf8"), "its format is none of"),
    "ply with a type": (".ply", ply().replace(b"float x", b"quad x"), "of unknown type: 'quad x'"),
    "ply without z": (".ply", ply().replace(b"float z", b"float w"), "has no property z"),
    "ply without faces": (".ply", ply().replace(b"element face", b"element edge"), "element face"),
    "ply without indices": (".ply", ply().replace(b"vertex_ind", b"ind"), "has no property vertex"),
    "ply with real indices": (
        ".ply",
        ply().replace(b"uchar int", b"uchar float"),
        "no list of whole numbers",
    ),
    "ply with real lengths": (".ply", ply().replace(b"list uchar", b"list float"), "no whole"),
    "ply with an early property": (
        ".ply",
        ply().replace(b"comment a cube", b"property int a"),
        "a property of no element",
    ),
    "ply without a count": (".ply", ply().replace(b"vertex 8", b"vertex -8"), "has no count"),
    "ply of many": (".ply", ply().replace(b"face 6", b"face 999999999999"), "it has 6 lines for"),
    "ply, truncated": (".ply", ply()[:-12], "it has 5 lines for 6 rows of face"),
    "ply with a short row": (".ply", ply()[:-3], "a row of its face is too short"),
    "ply with a letter": (".ply", ply()[:-2] + b"a", "has 'a' in it"),
    "ply with a word": (".ply", ply().replace(b"1.0 1.0 1.0", b"1 b 1"), "three numbers each"),
    "ply with a far corner": (".ply", ply()[:-2] + b"8", "a face of vertex 8"),
    "binary ply of many": (
        ".ply",
        binary_ply("<").replace(b"vertex 8", b"vertex 99999999999999"),
        "for 99999999999999 rows of vertex, which take 1199999999999988 or more",
    ),
    "binary ply, truncated": (".ply", binary_ply("<")[:-1], "it ends within its face"),
    "binary ply of mixed lengths, truncated": (
        ".ply",
        binary_ply(">", [*SQUARES[:4], *TRIANGLES[8:]])[:-1],
        "it ends within its face",
    ),
    "binary ply with a long list": (
        ".ply",
        lines(*ply_header("binary_little_endian", lists="uint int"), "")
        + bytes(96)
        + struct.pack("<I", 2**32 - 1)
        + bytes(100),
        "it ends within its face",
    ),
    "binary ply with a negative list": (
        ".ply",
        lines(*ply_header("binary_little_endian", lists="char int"), "") + bytes(96) + b"\xff" * 99,
        "it ends within its face",
    ),
    "binary ply of zeros": (
        ".ply",
        lines(*ply_header("binary_little_endian"), "") + bytes(96 + 6),
        "all 6 of thing are degenerate",
    ),
    "binary ply with NaN": (
        ".ply",
        binary_ply("<").replace(struct.pack("<f", 1), struct.pack("<f", np.nan)),
        "NaN or Inf",
    ),
    "stl, truncated": (".stl", stl()[:-200], "it ends before 'endsolid'"),
    "stl with a short vertex": (
        ".stl",
        stl().replace(b" 1.000000e+00", b" "),
        "must have three numbers",
    ),
    "stl with a lost vertex": (
        ".stl",
        stl().replace(b"      vertex", b"      vortex", 1),
        "it has 35 corners in 12 facets",
    ),
    "stl without facets": (".stl", b"solid a\nendsolid a\n", "thing has none"),
    "binary stl, truncated": (".stl", binary_stl()[:-1], "says 12 facets, and 11 follow"),
    "binary stl, header alone": (".stl", binary_stl()[:70], "shorter than a header"),
    "binary stl of many": (
        ".stl",
        binary_stl()[:80] + b"\xff\xff\xff\xff" + binary_stl()[84:],
        "says 4294967295 facets, and 12 follow",
    ),
    "binary stl of none": (".stl", bytes(84), "thing has none"),
    "blank": (".obj", b" \n\n", "thing is empty"),
}


@pytest.mark.parametrize(("ending", "data", "reason"), REFUSED.values(), ids=REFUSED)
def test_refuses(ending, data, reason):
    assert_refused(ending, data, reason)


# Damage.


def damaged(data, generator):
    """Return the data with some bytes changed, cut off, or both."""
    letters, kind = bytearray(data), generator.integers(3)
    if kind:
        for place in generator.integers(0, len(data), size=generator.integers(1, 5)):
            letters[place] = generator.integers(0, 256)
    if kind != 1:
        del letters[generator.integers(0, len(data)) :]
    return bytes(letters)


@each_file
def test_no_damage_raises_anything_but_a_refusal(ending, data):
    generator, refused = np.random.default_rng(0), []
    for _ in range(300):
        try:
            mesh = read(ending, damaged(data, generator))
        except InputError as error:
            refused.append(str(error))
        else:
            assert np.isfinite(mesh.vertices).all()
            assert mesh.faces.max() < len(mesh.vertices) <= 36
    assert len(refused) > 100
    assert not [message for message in refused if "\n" in message]


def test_no_words_raise_anything_but_a_refusal():
    generator = np.random.default_rng(0)
    words = (
        "v f 0 1 2 3 -1 4 9 1e999 nan a/b 1//2 OFF ply solid endsolid vertex facet endfacet # \\"
    )
    words = [*words.split(), "\n", "\n", "\n", "element", "property", "list", "end_header", "\x00"]
    for _ in range(400):
        text = " ".join(generator.choice(words, size=30))
        for ending, head in ((".obj", ""), (".off", "OFF\n"), (".ply", "ply\n"), (".stl", "solid")):
            try:
                read(ending, (head + text).encode())
            except InputError:
                continue


def test_refuses_another_ending(tmp_path):
    with pytest.raises(InputError, match=r"mesh must be a file of \.obj, .*, got .*thing\.glb\."):
        read_mesh(tmp_path / "thing.glb")
    assert not is_mesh_path("thing.glb")


def test_refuses_a_missing_file(tmp_path):
    with pytest.raises(InputError, match=r"mesh must be a file, .*thing\.obj does not exist\."):
        read_mesh(tmp_path / "thing.obj")


def test_refuses_an_empty_file(tmp_path):
    (tmp_path / "thing.ply").touch()
    with pytest.raises(InputError, match=r"mesh must be a file of \.ply, thing\.ply is empty\."):
        read_mesh(tmp_path / "thing.ply")


def test_refuses_a_directory_and_a_pipe(tmp_path):
    (tmp_path / "a.obj").mkdir()
    os.mkfifo(tmp_path / "b.obj")
    for name in ("a.obj", "b.obj"):
        with pytest.raises(InputError, match=rf"mesh must be a file, .*{name} is none\."):
            read_mesh(tmp_path / name)


def test_refuses_the_home_of_nobody():
    with pytest.raises(InputError, match="mesh must be a file"):
        read_mesh("~nobody-of-this-name/thing.obj")


def test_refuses_a_path_that_is_none():
    with pytest.raises(InputError, match="mesh must be a readable file"):
        read_mesh("a" * 5000 + ".obj")
    with pytest.raises(InputError, match="mesh must be a"):
        read_mesh("a\0.obj")


def test_refuses_what_is_too_large_before_it_is_read(tmp_path, monkeypatch):
    path = tmp_path / "thing.obj"
    path.write_bytes(obj())
    monkeypatch.setattr(mesh_files, "MOST_BYTES", 100)
    with pytest.raises(InputError, match=r"at most 100 B, .*thing\.obj has \d+ B\."):
        read_mesh(path)


def test_refuses_what_does_not_fit_in_memory(tmp_path, monkeypatch):
    path = tmp_path / "thing.obj"
    path.write_bytes(obj())
    monkeypatch.setattr(memory, "_system_bytes", lambda: 100)
    with pytest.raises(ResourceError, match=r"Reading thing\.obj must fit in memory"):
        read_mesh(path)
